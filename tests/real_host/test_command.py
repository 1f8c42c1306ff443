"""`carv threestudio` to the end: threestudio's own launch.py on stock configurations, with nothing edited.

The checkout is a folder with the real one's parts and another launch.py, which runs the real one on the CPU.
"""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cpu_host import EXTENSION
from host_models import built, fitted
from omegaconf import OmegaConf
from PIL import Image
from small_config import small

LAUNCHER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import cpu_host
from host_models import without_vgg
cpu_host.torch.set_num_threads(1)
cpu_host.enter(Path({checkout!r}))
without_vgg()
cpu_host.launch_as_script(Path({checkout!r}))
"""


@pytest.fixture
def root(checkout: Path, tmp_path: Path) -> Path:
    """A checkout for the CPU."""
    folder = tmp_path / "threestudio"
    (folder / "custom").mkdir(parents=True)
    for name in ("threestudio", "extern", "configs", "load"):
        (folder / name).symlink_to(checkout / name)
    (folder / "custom" / EXTENSION.name).symlink_to(EXTENSION)
    launcher = LAUNCHER.format(tests=str(Path(__file__).parent), checkout=str(checkout))
    (folder / "launch.py").write_text(launcher)
    return folder


def carv(root: Path, config: str | Path, *words: str) -> tuple[list[dict[str, Any]], str]:
    """(what each step logged, standard error) of the command."""
    done = start(root, config, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], done.stderr


def start(root: Path, config: str | Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    given = ["--threestudio", str(root), "--config", str(config), *words]
    return subprocess.run(
        [sys.executable, "-m", "carv_3d", "threestudio", *given],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True, text=True, check=False, timeout=900, cwd=root.parent,
    )  # fmt: skip


def words_for(checkout: Path, config: str, models: Path) -> list[str]:
    """What makes a stock configuration fit a CPU; nothing of it names a guidance type."""
    stock = OmegaConf.to_container(OmegaConf.load(checkout / config), resolve=False)
    assert isinstance(stock, dict)
    named = {str(key): value for key, value in stock.items()}
    return [*small(named), *fitted(named, models), "use_timestamp=false", "tag=trial", "trainer.val_check_interval=2"]


def test_a_stock_configuration_trains_resumes_and_is_tested(root: Path, checkout: Path, tmp_path: Path) -> None:
    config = "configs/dreamfusion-sd.yaml"
    words = words_for(checkout, config, tmp_path / "models")
    steps, said = carv(
        root, config, "--train", *words, "trainer.max_steps=3", "checkpoint.every_n_train_steps=3", "num_draws=8"
    )
    assert "stable-diffusion-guidance -> carv-stable-diffusion-guidance, K = 8" in said
    assert [record["step"] for record in steps] == [1, 2, 3]
    assert {record["guidance"] for record in steps} == {"CarvStableDiffusionGuidance"}
    assert all(record["logged"]["K"] == 8 and math.isfinite(record["logged"]["loss_sds"]) for record in steps)
    trial = root / "outputs" / "dreamfusion-sd" / "trial"
    parsed = OmegaConf.load(trial / "configs" / "parsed.yaml")
    assert parsed.system.guidance_type == "carv-stable-diffusion-guidance"
    assert parsed.system.guidance.guidance_scale == 100  # the stock file's
    assert parsed.system_type == "dreamfusion-system:carv-checkpoint"
    assert list((trial / "save").glob("it3-test*")), "its own test views"
    (logged,) = trial.rglob("metrics.csv")
    assert any(row["train/K"] == "8.0" for row in csv.DictReader(logged.open()))

    saved = trial / "ckpts" / "last.ckpt"
    parts = [str(trial / "configs" / "parsed.yaml"), "--train", f"resume={saved}", "trainer.max_steps=5", "num_draws=4"]
    resumed, said = carv(root, *parts)
    assert [record["step"] for record in resumed] == [4, 5]
    assert all(record["logged"]["K"] == 4 for record in resumed)
    assert "num_draws was 8 and is 4" in said

    before = {path: path.stat().st_mtime_ns for path in (trial / "save").rglob("*.png")}
    none, _ = carv(root, trial / "configs" / "parsed.yaml", "--test", f"resume={saved}")
    assert none == []
    assert {path: path.stat().st_mtime_ns for path in (trial / "save").rglob("*.png")} != before


def test_both_guidances_of_magic123_are_replaced(root: Path, checkout: Path, tmp_path: Path) -> None:
    config = "configs/magic123-coarse-sd.yaml"
    words = words_for(checkout, config, tmp_path / "models")
    steps, said = carv(root, config, "--train", *words, "trainer.max_steps=2")
    for kind in ("stable-diffusion-unified-guidance", "zero123-unified-guidance"):
        assert f" {kind} -> carv-{kind}, K = 4" in said
    assert [record["step"] for record in steps] == [1, 2]
    assert all(len(set(record["calls"])) == 2 for record in steps)


MISTAKES = {
    "an option": ("dreamfusion-sd", "system.guidance.guidence_scale=3", "no option 'guidence_scale'"),
    "a model of another family": (
        "dreamfusion-sd", "system.guidance.pretrained_model_name_or_path={models}/deep-floyd",
        "carv-deep-floyd-guidance",
    ),
    "no ControlNet": (
        "control4d-static", "system.guidance.controlnet_name_or_path=./nowhere", "there is no folder",
    ),
    "no image": ("magic123-coarse-sd", "system.guidance_3d.cond_image_path=nowhere.png", "nowhere.png"),
    "no image for Zero123": ("zero123", "system.guidance.cond_image_path=nowhere.png", "there is no such file"),
    "no image in the data": ("stable-zero123", "data.image_path=nowhere.png", "nowhere.png, which is not there"),
    "an opaque image": ("stable-zero123", "system.guidance.cond_image_path={models}/opaque.png", "no transparency"),
    "an opaque image in the data": ("zero123", "data.image_path={models}/opaque.png", "no transparency"),
}  # fmt: skip
"""(stock configuration, what is wrong, part of the sentence)."""


@pytest.mark.usefixtures("threestudio")  # whose own classes make Zero123's model
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_the_command_with_a_sentence(mistake: str, root: Path, checkout: Path, tmp_path: Path) -> None:
    config, wrong, due = MISTAKES[mistake]
    models = tmp_path / "models"
    if "deep-floyd" in wrong:
        built(models, "deep-floyd")
    words = words_for(checkout, f"configs/{config}.yaml", models)
    Image.new("RGB", (8, 8)).save(models / "opaque.png")
    done = start(root, f"configs/{config}.yaml", "--train", *words, wrong.format(models=models))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("carv: ")]
    assert due in said
