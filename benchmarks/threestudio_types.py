"""Every guidance type against its counterpart, in the real threestudio with tiny models: parity, seconds, variance.

    PYTHON benchmarks/threestudio_types.py CHECKOUT [--types KIND,...] [--repeats 60] [--out CSV]

PYTHON has threestudio's packages and pytest (`benchmarks/real_host.sh`). For each type the stock guidance and its
counterpart at K = 1, 4 and 8 get the same render again and again, interleaved. A step is the guidance and the backward
to the render; the render itself is free, so K costs more here than in a scene. The models are tiny and random: ratios
of seconds are of such models, not of Stable Diffusion's size. MVDream's type is measured where CARV_MVDREAM and
CARV_THREESTUDIO_MVDREAM name its checkouts; four views are one render there.

parity       the largest relative error of the recorded gradients at one draw without strata (tests/extension)
k8_over_8    seconds of a step at K = 8 over eight stock steps
variance     variance of the gradient at K over that of stock, of one fixed render
ecm          (variance x seconds of stock) / (variance x seconds), with its 95 % bootstrap interval
"""

from __future__ import annotations

import argparse
import csv
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / part) for part in ("", "extension", "real_host"))]

from bench import joined, replace_rows, run_script, script_parser  # noqa: E402

from carv_3d.core.variance import total_variance  # noqa: E402
from carv_3d.errors import CarvError  # noqa: E402
from carv_3d.stats.bootstrap import ecm_interval  # noqa: E402

DRAWS = (1, 4, 8)
COLUMNS = ("type", "K", "seconds", "over_stock", "k8_over_8", "variance", "ecm", "ecm_low", "ecm_high", "parity")
RECORDED = {
    "stable-diffusion-guidance": ("test_recorded_parity.py", "not vsd"),
    "stable-diffusion-vsd-guidance": ("test_recorded_parity.py", "vsd"),
    "stable-diffusion-unified-guidance": ("test_unified.py", "not vsd"),
    "stable-diffusion-sdi-guidance": ("test_sdi.py", ""),
    "deep-floyd-guidance": ("test_deep_floyd.py", ""),
    "stable-diffusion-controlnet-guidance": ("test_editing.py", "controlnet"),
    "stable-diffusion-instructpix2pix-guidance": ("test_editing.py", "instructpix2pix"),
    "zero123-guidance": ("test_recorded_zero123.py", "not stable"),
    "stable-zero123-guidance": ("test_recorded_zero123.py", "stable"),
    "zero123-unified-guidance": ("test_zero123_unified.py", "not vsd"),
    "mvdream-multiview-diffusion-guidance": ("test_mvdream.py", ""),
}
"""The test of each type's recorded gradients, and which of its cases, as pytest's -k."""

LOSSES = {"unified": "loss_sd", "vsd": "loss_vsd", "sdi": "loss_sdi"}  # by a part of the type's name


@dataclass
class Subject:
    """One type, ready to be called: the stock guidance, its counterpart by K, a call with a render (1, H, W, 3)."""

    stock: Any
    counterparts: dict[int, Any]
    call: Callable[[Any, Tensor], dict[str, Any]]
    rgb: Tensor
    loss: str


@dataclass
class Recording:
    """How a type was recorded: the recorder, what a call gets after the render, options of both, of ours alone."""

    recorder: Any
    arguments: list[Any]
    options: dict[str, Any] = field(default_factory=dict)
    own: dict[str, Any] = field(default_factory=dict)
    rgb: Tensor | None = None
    views: dict[str, Tensor] | None = None


def build(kind: str, checkout: Path, folder: Path) -> Subject:
    """The subject of a type, by the recorder of its gradients."""
    import cpu_host
    import recorded_parity as recorded

    from carv_3d.hosts.counterparts import COUNTERPARTS

    made = RECORDERS.get(kind, _stable_diffusion)(kind, checkout, folder)
    views = made.views or {
        **recorded.views(1), "c2w": recorded.fill("c2w", 1, 4, 4), "mvp_mtx": recorded.fill("mvp_mtx", 1, 4, 4)
    }  # fmt: skip

    def call(guidance: Any, rgb: Tensor) -> dict[str, Any]:
        return guidance(rgb, *made.arguments, **views)

    cpu_host.load_extension()
    if "zero123" in kind:
        sys.modules["threestudio-carv.zero123"].PACKAGE = "compvis_models"  # of the tiny network
    stock = made.recorder.stock(kind, **made.options)
    name, find = COUNTERPARTS[kind].name, made.recorder.host.find
    made.recorder.host.find = lambda _: find(name)
    options = {**made.options, **made.own}
    counterparts = {K: made.recorder.stock(kind, **options, num_draws=K, seed=K) for K in DRAWS}
    loss = next((name for part, name in LOSSES.items() if part in kind), "loss_sds")
    rgb = recorded.render("perp-neg") if made.rgb is None else made.rgb
    return Subject(stock, counterparts, call, rgb.detach(), loss)


def _texts(file: Path) -> list[Any]:
    import recorded_parity as recorded
    from safetensors.torch import load_file

    return [recorded.RecordedPrompts(load_file(file), 1)]


def _stable_diffusion(kind: str, checkout: Path, folder: Path) -> Recording:
    import cpu_host
    import recorded_parity as recorded
    from record_parity import Recorder

    recorder = Recorder(checkout, folder)
    if kind in ("stable-diffusion-unified-guidance", "stable-diffusion-sdi-guidance"):
        module = importlib.import_module(f"threestudio.models.guidance.{kind.replace('-', '_')}")
        from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher

        cpu_host.resize_like(StableDiffusionTeacher.load(recorder.model, device="cpu", with_text=False), module)
    texts = _texts(recorded.TENSORS)
    if "vsd" not in kind:
        return Recording(recorder, texts)
    from diffusers.models.embeddings import TimestepEmbedding
    from threestudio.models.guidance import stable_diffusion_vsd_guidance

    stable_diffusion_vsd_guidance.TimestepEmbedding = lambda a, b: TimestepEmbedding(a, 32)  # it writes out 1280
    return Recording(recorder, texts, {"pretrained_model_name_or_path_lora": recorder.v_model})


def _deep_floyd(kind: str, checkout: Path, folder: Path) -> Recording:
    import recorded_parity as recorded
    from record_deepfloyd import DeepFloydRecorder

    return Recording(DeepFloydRecorder(checkout, folder), _texts(recorded.FOLDER / "deepfloyd.safetensors"))


def _zero123(kind: str, checkout: Path, folder: Path) -> Recording:
    from record_zero123 import Recorder, shrink

    recorder = Recorder(checkout, folder)
    from threestudio.models.guidance import stable_zero123_guidance, zero123_guidance

    for module in (zero123_guidance, stable_zero123_guidance):
        shrink(module)
    return Recording(recorder, [])


def _zero123_unified(kind: str, checkout: Path, folder: Path) -> Recording:
    import record_zero123_unified as unified
    from record_zero123 import shrink

    sys.path.append(str(checkout / "extern"))  # as its pipeline's folder names the class
    recorder = unified.Recorder(checkout, folder)
    from threestudio.models.guidance import zero123_unified_guidance as module

    shrink(module)
    module.TF = SimpleNamespace(to_tensor=unified.to_tensor, to_pil_image=unified.to_pil_image)
    module.Image = unified.SmallImages
    return Recording(recorder, [])


def _editing(kind: str, checkout: Path, folder: Path) -> Recording:
    import record_editing
    import recorded_editing as editing
    import recorded_parity as recorded
    from safetensors.torch import load_file

    models = editing.write_models(folder)
    recorder = record_editing.Recorder(checkout, kind, models)
    rgb, cond = editing.images()
    with_control = kind == editing.CONTROLNET
    name = "controlnet" if with_control else "instructpix2pix"
    text = editing.Prompts(load_file(recorded.FOLDER / f"{name}.safetensors")["text"])
    options: dict[str, Any] = {"use_sds": True}
    if not with_control:
        return Recording(recorder, [cond, text], options, rgb=rgb)
    record_editing.exchange_names(models["controlnet"])
    own = {"controlnet_name_or_path": str(models["controlnet"])}
    return Recording(recorder, [cond, text], {**options, "control_type": "canny"}, own, rgb)


def _mvdream(kind: str, checkout: Path, folder: Path) -> Recording:
    """The real package's network at a tiny size; four views are one object, and one render."""
    import cpu_host
    import mvdream_tiny
    import recorded_mvdream as mvdream
    import recorded_parity as recorded
    from omegaconf import OmegaConf

    host = cpu_host.enter(checkout)
    options = {"ckpt_path": mvdream_tiny.write(folder / "mvdream"), "image_size": mvdream_tiny.IMAGE_SIZE}
    mvdream_tiny.load_stock(host)
    V, L = mvdream_tiny.VIEWS, 5
    text = recorded.fill("text", 2 * V, L, mvdream_tiny.WIDTH)
    recorder = SimpleNamespace(host=SimpleNamespace(find=host.find))
    recorder.stock = lambda kind, **given: recorder.host.find(kind)(OmegaConf.create(given))
    views = {**mvdream.batch("images", V), "text_embeddings": text}
    return Recording(recorder, [mvdream.Prompts()], options, rgb=mvdream.render("images", V), views=views)


RECORDERS: dict[str, Callable[[str, Path, Path], Recording]] = {
    "deep-floyd-guidance": _deep_floyd, "zero123-guidance": _zero123, "stable-zero123-guidance": _zero123,
    "zero123-unified-guidance": _zero123_unified, "stable-diffusion-controlnet-guidance": _editing,
    "stable-diffusion-instructpix2pix-guidance": _editing, "mvdream-multiview-diffusion-guidance": _mvdream,
}  # fmt: skip
"""Types that are not recorded as those of Stable Diffusion."""


def measure(subject: Subject, repeats: int) -> dict[int, tuple[list[float], Tensor]]:
    """(seconds of each step, gradients (repeats, D)) by K, 0 for stock; interleaved, two rounds warm up."""
    guidances = {0: subject.stock, **subject.counterparts}
    seconds: dict[int, list[float]] = {K: [] for K in guidances}
    gradients: dict[int, list[Tensor]] = {K: [] for K in guidances}
    for repeat in range(-2, repeats):
        for K, guidance in guidances.items():
            image = subject.rgb.clone().requires_grad_()
            begin = time.perf_counter()
            loss = subject.call(guidance, image)[subject.loss]
            (gradient,) = torch.autograd.grad(loss, image)
            if repeat >= 0:
                seconds[K].append(time.perf_counter() - begin)
                gradients[K].append(gradient.flatten())
    return {K: (seconds[K], torch.stack(gradients[K])) for K in guidances}


def rows(kind: str, measured: dict[int, tuple[list[float], Tensor]]) -> list[dict[str, Any]]:
    """Of one type but for the parity, K = 0 for the stock guidance."""
    cost = {K: statistics.median(seconds) for K, (seconds, _) in measured.items()}
    base = measured[0][1]
    out = []
    for K, (_, gradients) in measured.items():
        ecm = ecm_interval(base, cost[0], gradients, cost[K])
        row = {"type": kind, "K": K, "seconds": cost[K], "over_stock": cost[K] / cost[0]}
        row |= {"variance": total_variance(gradients) / total_variance(base)}
        row |= {"ecm": ecm.value, "ecm_low": ecm.low, "ecm_high": ecm.high}
        out.append({**row, "k8_over_8": cost[8] / (8 * cost[0]) if K == 8 else ""})
    return out


class Parity:
    """A plugin of pytest that keeps the largest relative error of the recorded gradients, by the type of the case."""

    def __init__(self) -> None:
        """None yet."""
        self.worst = 0.0

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Once the tests are imported, and before they run."""
        import recorded_parity as recorded

        checked = recorded.check_gradients

        def check(case: str, out: Any, rgb: Tensor, facts: Any, tensors: dict[str, Tensor]) -> None:
            for name, gradient in recorded.gradients(out, rgb).items():
                due = tensors[f"{case}: {name}"]
                self.worst = max(self.worst, float((gradient - due).norm() / due.norm()))
            checked(case, out, rgb, facts, tensors)

        recorded.check_gradients = check


def parity(kind: str) -> float:
    """The largest relative error over all recorded cases of a type, by its own tests."""
    import pytest

    plugin, (file, cases) = Parity(), RECORDED[kind]
    words = f"stock_gradient and {cases}" if cases else "stock_gradient"
    given = ["-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider", "-q", "-k", words]
    if pytest.main([*given, str(ROOT / "tests" / "extension" / file)], [plugin]) or not plugin.worst:
        raise CarvError(f"the recorded gradients of {kind} are not met, or none was tried; run {file} by pytest")
    return plugin.worst


def one_type(kind: str, checkout: Path, repeats: int) -> None:
    """Measure one type in this process, and write its rows as CSV to standard output."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        made = rows(kind, measure(build(kind, checkout, Path(folder)), repeats))
        os.chdir(ROOT)
    writer = csv.DictWriter(sys.stdout, COLUMNS)
    writer.writerows({k: f"{x:.4g}" if isinstance(x, float) else x for k, x in row.items()} for row in made)


def main() -> None:
    """A process for each type, since recording changes threestudio's modules; rows of other types stay in the file."""
    import mvdream_tiny

    types = [kind for kind in RECORDED if kind != mvdream_tiny.KIND or mvdream_tiny.here()]
    parser = script_parser(__doc__, repeats=60)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--types", type=joined(RECORDED), default=",".join(types))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "threestudio-types.csv")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the work of such a process
    o = parser.parse_args()
    checkout = o.checkout.resolve()
    if o.one:
        one_type(o.one, checkout, o.repeats)
        return
    order = list(RECORDED)
    for kind in o.types:
        command = [sys.executable, __file__, str(checkout), "--one", kind, "--repeats", str(o.repeats)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith(f"{kind},")]
        if done.returncode or not lines:
            print(f"{kind}: not measured: {(done.stderr.strip() or '?').splitlines()[-1]}", file=sys.stderr)
            continue
        error = parity(kind)
        own = [{**row, "parity": f"{error:.1e}"} if row["K"] == "1" else row for row in csv.DictReader(lines, COLUMNS)]
        replace_rows(o.out, COLUMNS, own, ("type", "K"), lambda each: order.index(each["type"]))
        for row in own:
            print(", ".join(f"{name} {value}" for name, value in row.items() if value), file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
