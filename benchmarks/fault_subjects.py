"""What faults are tried on: a small piece of each command's work, how it resumes, and what it comes to."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_files  # it makes models and images
import torch

from carv_3d.cli.main import main
from carv_3d.errors import CarvError
from carv_3d.io.tables import append_row, read_metrics, write_rows
from carv_3d.runs.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "extension"))

STEPS, EVERY = 6, 2  # of a run, and between two checkpoints
COLUMNS = ("step", "seconds")
OTHERWISE = ("seconds", "signal", "snr_step")  # times, and the running SNR, which begins anew in a resumed run
LENGTH = [f"trainer.max_steps={STEPS}", f"checkpoint.every_n_train_steps={EVERY}"]
GENERATE = [w for w in fuzz_files.GENERATE if not w.startswith(("trainer.max", "checkpoint."))] + LENGTH
GENERATE = [*GENERATE, fuzz_files.MODEL.replace("=m", "=../m")]


@dataclass(frozen=True)
class Subject:
    """One piece of work in a folder.

    Args:
        begin: does the work in the working folder, and returns an exit status.
        resume: the same after a fault.
        folders: globs of the run folders that hold metrics.csv and a checkpoint.
        files: globs of what must be equal to the byte in the end.
        interval: steps that may be done again after a fault.
    """

    begin: Callable[[], int]
    resume: Callable[[], int]
    folders: str
    files: tuple[str, ...]
    interval: int = EVERY


def _carv(*words: str) -> Callable[[], int]:
    return lambda: main(list(words))


def _resumed(begin: Callable[[], int], resume: Callable[[], int], folder: str) -> Callable[[], int]:
    """Resume where config.yaml says that a run was begun, else begin."""
    return lambda: resume() if (Path(folder) / "config.yaml").exists() else begin()


def _extension() -> int:
    """A host that trains two renders' pixels by the extension's guidance, and saves every few steps."""
    import host_double
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        host = host_double.install(patch)
        guidance = host.modules["carv-stable-diffusion-guidance"](
            {"pretrained_model_name_or_path": "../m", "seed": 0, "vae_sample": False, "proposal": "adaptive"}
        )
        system = type("system", (host.modules["carv-checkpoint"], host_double.System), {})()
        system.guidance = guidance
        try:
            return _train(system, guidance, host_double)
        except CarvError as error:
            print(f"carv: {error}")
            return 2


def _train(system: Any, guidance: Any, double: Any) -> int:
    rgb = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    texts = (["a mug", "a cup"], ["bad", "worse"], ["all", "round"])
    text, uncond, from_all_sides = map(StableDiffusionTeacher.load("../m", device="cpu").text_embeddings, texts)
    utils = double.PromptUtils(text, uncond, from_all_sides=from_all_sides)
    folder, step = Path("e"), 0
    folder.mkdir(exist_ok=True)
    write_rows(folder / "metrics.csv", COLUMNS, read_metrics(folder / "metrics.csv"))
    if has_checkpoint(folder / "checkpoint"):
        saved = load_checkpoint(folder / "checkpoint", resuming=True)[0]
        system.on_load_checkpoint(saved)
        system.on_fit_start()
        step = saved["step"]
        rgb.data.copy_(saved["rgb"])
    while step < STEPS:
        loss = guidance(rgb, utils, **double.VIEWS)["loss_sds"]
        rgb.data -= 0.1 * torch.autograd.grad(loss, rgb)[0]
        step += 1
        append_row(folder / "metrics.csv", COLUMNS, {"step": float(step), "seconds": 0.0})
        if step % EVERY == 0:
            state: dict[str, Any] = {"step": step, "rgb": rgb.detach().clone()}
            system.on_save_checkpoint(state)
            save_checkpoint(folder / "checkpoint", state)
    return 0


def subjects() -> dict[str, Subject]:
    """By name."""
    generate = _carv("generate", "a red mug", "--out", "r", *GENERATE)
    distill = _carv("distill", "../m", "--out", "d", "batch_size=1", "num_draws=1", "preview_prompts=2",
                    "prompts=../p.txt", f"steps={STEPS}", "save_every=0")  # fmt: skip
    compare = _carv("compare", "--prompt", "a red mug", "--method", "a=num_draws=2", "--method", "b=uniform",
                    "--steps", "4", "--points", "2", "--out", "s", GENERATE[-1], *fuzz_files.SHARED)  # fmt: skip
    attribute = _carv("attribute", "../im/2.png", "--model", "../m", "--training-images", "../im", "--store", "st",
                      "--out", "a", "--prompt", "a mug", "num_draws=4", "query_draws=16", "dim=16")  # fmt: skip
    return {
        "generate": Subject(generate, _resumed(generate, _carv("generate", "--resume", "--out", "r"), "r"), "r",
                            ("r/asset.glb", "r/asset.obj", "r/preview.png")),
        "distill": Subject(distill, _resumed(distill, _carv("distill", "--resume", "--out", "d"), "d"), "d", (), 1),
        "compare": Subject(compare, compare, "s/runs/*/*", ("s/sweep.yaml", "s/runs/*/*/asset.glb")),
        "attribute": Subject(attribute, lambda: 0 if Path("a").exists() else attribute(), "none", ("a/scores.csv",)),
        "extension": Subject(_extension, _extension, "e", ()),
    }  # fmt: skip


def result(subject: Subject) -> dict[str, str]:
    """What the work came to, by name: hashes of states, of figures without times, of files."""
    out = {}
    for folder in sorted(Path().glob(subject.folders)):
        state = load_checkpoint(folder / "checkpoint")[0]
        leaves = {name: text for name, text in _leaves(state, "state") if not any(word in name for word in OTHERWISE)}
        out |= {f"{folder}: {name}": text for name, text in leaves.items()}
        rows = [
            {k: v for k, v in row.items() if not k.startswith(OTHERWISE)}
            for row in read_metrics(folder / "metrics.csv")
        ]
        out[f"{folder}: metrics"] = _hash(json.dumps(_last_of_each(rows)).encode())
    for pattern in subject.files:
        out |= {str(path): _hash(path.read_bytes()) for path in sorted(Path().glob(pattern))}
    return out


def _last_of_each(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """One row a step: a host of its own may have appended a step twice."""
    return list({row["step"]: row for row in rows}.values())


def _leaves(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, torch.Tensor):
        yield name, _hash(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, (dict, list, tuple)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{name}.{key}")
    else:
        yield name, repr(value)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def progress(subject: Subject) -> dict[str, tuple[int, int]]:
    """(steps done, step that is saved) of each run folder, after a fault."""
    out = {}
    for folder in Path().glob(subject.folders):
        done, saved = 0, 0
        with suppress(CarvError, OSError):
            done = max((int(row["step"]) for row in read_metrics(folder / "metrics.csv")), default=0)
        if has_checkpoint(folder / "checkpoint"):
            saved = int(load_checkpoint(folder / "checkpoint")[0]["step"])
        out[str(folder)] = (done, saved)
    return out
