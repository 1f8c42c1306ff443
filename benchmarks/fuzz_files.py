"""Every kind of file that is read, with something odd in it: fuzz_formats.yaml lists them."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from fuzz_binary import array_file, checkpoint_file, events_file, image_file, record, safetensors_file
from fuzz_guard import Case
from fuzz_mutations import Mutant, csv_file, damaged, json_file, jsonl_file, text_file, yaml_file
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from small_models import build_sd_folder
from tiny_host import PARSED, TINY

from carv_3d.cli.main import main

TABLE: Mapping[str, Mapping[str, Any]] = yaml.safe_load(Path(__file__).with_name("fuzz_formats.yaml").read_text())
FORMATS = {
    "json": json_file,
    "yaml": yaml_file,
    "csv": csv_file,
    "jsonl": jsonl_file,
    "text": text_file,
    "bytes": damaged,
    "safetensors": safetensors_file,
    "checkpoint": checkpoint_file,
    "events": events_file,
    "image": image_file,
    "array": array_file,
}
GENERATE = [*TINY, "trainer.max_steps=2", "checkpoint.every_n_train_steps=1", "system.exporter.resolution=10"]
MODEL = "system.guidance.pretrained_model_name_or_path=m"
SHARED = [w for w in TINY if not w.startswith(("checkpoint.", "trainer."))]  # what a comparison's runs may have
WORDS = {
    "MODEL": [MODEL, *GENERATE],
    "ATTRIBUTE": [
        "--model",
        "m",
        "--training-images",
        "im",
        "--store",
        "st",
        "--out",
        "a",
        "--prompt",
        "a mug",
        "num_draws=4",
        "query_draws=16",
        "dim=16",
    ],
    "SWEEP": [
        "--prompt",
        "a red mug",
        "--method",
        "a=num_draws=2",
        "--method",
        "b=uniform",
        "--steps",
        "1",
        "--points",
        "1",
        "--out",
        "s",
        MODEL,
        *SHARED,
    ],
    "VARIANCE": ["r", "--out", "v", "--draws", "2", "--methods", "is", "--budget", "0.01"],
}


def words(given: list[str]) -> tuple[str, ...]:
    """A command of the table, with its capitals written out."""
    return tuple(w for word in given for w in WORDS.get(word, [word]))


def build_base(base: Path, parts: set[str]) -> None:
    """Make what the areas start from: a model, runs, a sweep, a trial, images, a store. Calls `carv` in `base`."""
    before, screen = os.getcwd(), io.StringIO()
    os.chdir(base)
    try:
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
            for name, (make, needs) in MAKERS.items():
                if parts & {name, *needs}:
                    make(base)
    except AssertionError as error:
        raise RuntimeError(f"{error}: {screen.getvalue()[-300:]}") from error
    finally:
        os.chdir(before)


def _carv(*given: str) -> None:
    status = main(list(words(list(given))))
    assert status == 0, f"the base of {given[0]} could not be made: {status}"


def _runs(base: Path) -> None:
    for folder, seed in (("r", "0"), ("r2", "1")):
        _carv("generate", "a red mug", "--out", folder, "--seed", seed, "MODEL")
        (base / folder / "checkpoint.previous").unlink()


def build_config(base: Path) -> None:
    """c.yaml: the settings of a tiny run."""
    from omegaconf import OmegaConf

    OmegaConf.save(OmegaConf.from_dotlist([MODEL, *GENERATE]), base / "c.yaml")


def _distill(base: Path) -> None:
    (base / "p.txt").write_text("a red mug\na green tree\n")
    _carv("distill", "m", "--out", "d", "batch_size=1", "num_draws=1", "prompts=p.txt", "steps=1")
    (base / "d" / "checkpoint.previous").unlink(missing_ok=True)


def _trial(base: Path) -> None:
    from tensorboard.compat.proto import event_pb2, summary_pb2

    logs = base / "t" / "csv_logs" / "version_0"
    logs.mkdir(parents=True)
    lines = ["epoch,step,train/grad_norm,train/loss", *(f"0,{i},{10 + i},{1 / (1 + i):g}" for i in range(4))]
    (logs / "metrics.csv").write_text("\n".join(lines) + "\n")
    (base / "t" / "configs").mkdir()
    (base / "t" / "configs" / "parsed.yaml").write_text(PARSED)
    events = [event_pb2.Event(wall_time=1.0, file_version="brain.Event:2")]
    for i in range(4):
        value = summary_pb2.Summary.Value(tag="train/loss", simple_value=1 / (1 + i))
        events.append(event_pb2.Event(wall_time=2.0 + i, step=i, summary=summary_pb2.Summary(value=[value])))
    (base / "t" / "tb_logs" / "version_0").mkdir(parents=True)
    (base / "t" / "tb_logs" / "version_0" / "events.out.tfevents.1").write_bytes(b"".join(map(record, events)))
    shutil.copytree(base / "t", base / "t2")


def _images(base: Path) -> None:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    (base / "im").mkdir()
    for name in ("0.png", "1.jpg", "2.png", "3.png", "4.png"):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(base / "im" / name)
    shutil.copy(base / "im" / "0.png", base / "q.png")
    (base / "im" / "1.txt").write_text("a green tree")
    captions = '{"file_name": "0.png", "text": "a red mug"}\n{"file_name": "2.png", "text": "a blue mug"}\n'
    (base / "im" / "metadata.jsonl").write_text(captions)
    (base / "im" / "metadata.csv").write_text('file_name,text\n3.png,"a red, round mug"\n')
    with tarfile.open(base / "im" / "s.tar", "w") as archive:
        for name in ("1.jpg", "1.txt"):
            archive.add(base / "im" / name, name)
    _carv("attribute", "im/2.png", "ATTRIBUTE")
    shutil.rmtree(base / "a")


# part -> what makes it, and what else is made with it
MAKERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "m": (lambda base: build_sd_folder(base / "m"), ("r", "d", "im", "s", "v", "c.yaml", "r2")),
    "c.yaml": (build_config, ()),
    "r": (_runs, ("r2", "v")),
    "d": (_distill, ("p.txt",)),
    "t": (_trial, ("t2",)),
    "im": (_images, ("q.png", "st")),
    "s": (lambda base: _carv("compare", "SWEEP"), ()),
    "v": (lambda base: _carv("variance", "VARIANCE"), ()),
}


def parts_needed(area: str) -> set[str]:
    """The folders of the base that an area's inputs need."""
    return set(TABLE[area]["parts"]) | {name.partition("/")[0] for name in TABLE[area]["files"]}


def control(area: str) -> Case:
    """The area's command with nothing odd: it must be fine, or its inputs show nothing."""
    return Case("nothing odd", words(TABLE[area]["command"]), None, tuple(TABLE[area]["parts"]), light=True)


@st.composite
def cases(draw: Any, area: str, base: Path) -> Case:
    """One input of an area of the table."""
    entry = TABLE[area]
    names = sorted(p.relative_to(base).as_posix() for pattern in entry["files"] for p in base.glob(pattern))
    name = draw(st.sampled_from(names))
    mutant: Mutant = draw(FORMATS[entry["format"]]((base / name).read_bytes()))
    must = bool(entry.get("strict")) and mutant.broken
    good, light = control(area), draw(st.integers(0, 7)) > 0
    return replace(good, note=f"{name}: {mutant.note}", files={name: mutant.content}, must_refuse=must, light=light)
