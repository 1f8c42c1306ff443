"""Every family of models with every command: it runs, or says in one sentence why not, as docs/TEACHERS.md has it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_matrix import CHECKS, RUNS, checks_table
from PIL import Image
from small_families import build_family
from tiny_host import TINY

from carv_3d.cli import main as cli

UNET_ALONE = "holds {family}, and carv distill, which trains a UNet on one text encoder and exports it as a Stable"
FAMILIES = {  # as the folder is called in the messages; PixArt-alpha's small model has large images
    "Stable Diffusion 1, 2": "Stable Diffusion 1.x or 2.x", "Stable Diffusion XL": "Stable Diffusion XL",
    "Playground 2.5": "Stable Diffusion XL", "Stable Diffusion 3": "Stable Diffusion 3 or 3.5", "FLUX.1": "FLUX.1",
    "PixArt-sigma": "PixArt-alpha or PixArt-sigma", "SANA": "SANA", "DeepFloyd IF": "DeepFloyd IF, stage I",
}  # fmt: skip
COMMANDS = ("generate", "variance", "compare", "attribute", "distill")
CELLS = {
    (family, command): UNET_ALONE if command == "distill" and "1, 2" not in family else RUNS
    for family in FAMILIES
    for command in COMMANDS
}
# more than 10 s, on a machine with other work
LONG = {(family, "compare") for family in FAMILIES} | {(f, "variance") for f in FAMILIES if f != "PixArt-sigma"}
WHY = {UNET_ALONE: "no: it trains the UNet of Stable Diffusion 1, 2"}
PAGE = Path(__file__).parents[2] / "docs" / "TEACHERS.md"


def table() -> str:
    """The cells in Markdown."""
    rows = [
        f"| family | {' | '.join(f'`carv {command}`' for command in COMMANDS)} |",
        "|---" * (1 + len(COMMANDS)) + "|",
    ]
    for family in FAMILIES:
        cells = [WHY.get(CELLS[family, command], RUNS) for command in COMMANDS]
        rows.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(rows)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two images and a list of prompts."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "images").mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    (folder / "prompts.txt").write_text("a mug")
    return folder


@pytest.fixture(scope="module")
def runs(place: Path) -> dict[str, int]:
    """What `carv generate` ended with, by family; each is made when it is first asked for."""
    return {}


def model(place: Path, family: str) -> Path:
    folder = place / family
    return folder if folder.exists() else build_family(family, folder)


def run(place: Path, family: str, runs: dict[str, int]) -> Path:
    out = place / f"run {family}"
    if family not in runs:
        name = f"system.guidance.pretrained_model_name_or_path={model(place, family)}"
        small = ["trainer.max_steps=1", "trainer.val_check_interval=1", "checkpoint.every_n_train_steps=1"]
        runs[family] = cli.main(["generate", "mug", *TINY, *small, name, "--out", str(out)])
    return out


@pytest.mark.parametrize(
    ("family", "command"),
    [pytest.param(*cell, marks=[pytest.mark.slow] * (cell in LONG)) for cell in CELLS],
)
def test_every_command_runs_or_says_why_not(
    family: str, command: str, place: Path, runs: dict[str, int], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("CARV_CACHE", str(place / "cache"))
    expected, out = CELLS[family, command], place / f"{command} {family}"
    if command == "generate":
        out = run(place, family, runs)
        status = runs[family]
    elif command == "variance":
        source = run(place, family, runs)
        small = ["--at", "1", "--draws", "1", "--methods", "uniform", "--budget", "1e-6"]
        status = cli.main(["variance", str(source), *small, "--out", str(out)])
    elif command == "compare":
        name = f"system.guidance.pretrained_model_name_or_path={model(place, family)}"
        methods = ["--method", "one=num_draws=2,antithetic=false", "--method", "four=num_draws=4"]
        small = [word for word in TINY if not word.startswith(("trainer.", "checkpoint.", "device="))]
        words = ["compare", "--prompt", "mug", *methods, "--steps", "1", "--points", "1", name, *small, "device=cpu"]
        status = cli.main([*words, "--out", str(out)])
    elif command == "attribute":
        small = ["num_draws=2", "antithetic=false", "query_draws=8", "dim=16", "--method", "cosine", "--resize"]
        name = ["--model", str(model(place, family)), "--training-images", "images"]
        status = cli.main(["attribute", "images/1.png", "--prompt", "mug", *name, *small, "--out", str(out)])
    else:
        status = cli.main(["distill", "--dry-run", str(model(place, family)), "prompts=prompts.txt"])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("carv: ")]
    if expected != RUNS:
        assert status == 2
        assert len(errors) == 1
        assert expected.format(family=FAMILIES[family]) in errors[0]
        return
    assert status == 0, errors
    if command == "generate":
        rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
        assert float(rows[0]["grad_norm"]) > 0
        assert (out / "asset.glb").is_file()
    elif command == "variance":
        rows = list(csv.DictReader((out / "variance.csv").read_text().splitlines()))
        assert {row["method"] for row in rows} == {"uniform"}
        assert json.loads((out / "batches.json").read_text())["batches"]
    elif command == "compare":
        assert (out / "compare.html").is_file()
        rows = [row for file in out.rglob("metrics.csv") for row in csv.DictReader(file.read_text().splitlines())]
        assert sum(bool(row["grad_norm"]) and float(row["grad_norm"]) > 0 for row in rows) == 2  # each method's step
    elif command == "attribute":
        rows = list(csv.DictReader((out / "scores.csv").read_text().splitlines()))
        assert all(abs(float(row["score"])) > 0 for row in rows)


def test_the_page_has_the_tables() -> None:
    for made in (table(), checks_table()):
        assert made in PAGE.read_text(), f"docs/TEACHERS.md needs this table:\n{made}"


def test_every_column_has_its_test() -> None:
    root = Path(__file__).parents[2]
    for check, test in CHECKS.items():
        file, _, name = test.partition("::")
        text = (root / file).read_text()
        assert f"def {name}(" in text
        due = "HOSTS" if check == "threestudio" else f'families("{check}")'
        assert due in text, check
