"""Loggers: TensorBoard's event files and an offline run of Weights & Biases have the run's figures, images and mesh."""

from __future__ import annotations

import importlib.util
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
from commands import refusal
from tiny_host import TINY

from carv_3d.cli import main as cli
from carv_3d.errors import CarvError
from carv_3d.io.tables import read_metrics
from carv_3d.runs import loggers
from carv_3d.runs.loggers import make_logger


@pytest.fixture
def words(sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments that make a run tiny, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return ["generate", "a red mug", "--out", "run", *TINY, f"pretrained_model_name_or_path={sd_folder}"]


def events() -> Any:
    """What TensorBoard reads of the run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator("run/tb_logs", {"scalars": 0, "images": 0, "tensors": 0})
    read.Reload()
    return read


def test_tensorboard_has_the_figures_the_images_and_the_mesh_under_the_names_of_the_columns(words: list[str]) -> None:
    assert cli.main([*words, "logger=tensorboard"]) == 0
    rows, read = read_metrics(Path("run/metrics.csv")), events()
    assert {"seconds", "grad_norm", "nfe", "classifier_object"} <= set(read.Tags()["scalars"])
    logged = {event.step: event.value for event in read.Scalars("grad_norm")}
    assert logged == pytest.approx({int(row["step"]): row["grad_norm"] for row in rows}, rel=1e-5)
    assert [event.step for event in read.Images("progress")] == [2, 4]
    assert [event.step for event in read.Images("preview")] == [4]
    assert any(tag.startswith("asset") for tag in read.Tags()["tensors"])


def test_a_resumed_run_has_each_step_once(words: list[str]) -> None:
    assert cli.main([*words, "logger=tensorboard", "trainer.max_steps=3", "checkpoint.every_n_train_steps=2"]) == 0
    Path("run/checkpoint").unlink()  # of step 3; the one before is of step 2
    again = ["generate", "--resume", "--out", "run", "trainer.max_steps=5", "logger=tensorboard"]
    assert cli.main(again) == 0
    assert [event.step for event in events().Scalars("grad_norm")] == [1, 2, 3, 4, 5]


class FakeRun:
    """A run of wandb."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.finished = False

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, figures: dict[str, Any]) -> None:
        self.logged.append(figures)

    def finish(self) -> None:
        self.finished = True
        raise OSError("no network")


def test_wandb_is_given_each_step_and_a_resumed_run_has_its_id(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, asked = [], []
    fake = types.ModuleType("wandb")
    fake.__spec__ = importlib.util.spec_from_loader("wandb", None)

    def init(**given: Any) -> FakeRun:
        asked.append(given)
        runs.append(FakeRun())
        return runs[-1]

    fake.init, fake.Image, fake.Object3D = init, (lambda path: path), (lambda path: path)  # type: ignore[attr-defined]
    fake.login = lambda **given: True  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    assert cli.main([*words, "logger=wandb"]) == 0
    steps = [entry["step"] for entry in runs[0].logged if "grad_norm" in entry]
    assert steps == [1, 2, 3, 4]
    assert {"asset": "run/asset.glb", "step": 4} in runs[0].logged
    assert all(value == value for entry in runs[0].logged for value in entry.values())  # no NaN
    assert runs[0].finished
    assert asked[0]["config"]["system"]["prompt_processor"]["prompt"] == "a red mug"
    assert cli.main(["generate", "--resume", "--out", "run", "trainer.max_steps=5", "logger=wandb"]) == 0
    assert asked[0]["id"] == asked[1]["id"] == Path("run/wandb-id").read_text(encoding="utf-8")
    Path("run/wandb-id").write_text("../x", encoding="utf-8")
    with pytest.raises(CarvError, match="holds no id of Weights & Biases"):
        make_logger("wandb", Path("run"), 0, {})

    def fails(**given: Any) -> None:
        raise RuntimeError("api_key not configured")

    fake.init = fails  # type: ignore[attr-defined]
    Path("run/wandb-id").unlink()
    with pytest.raises(CarvError, match=r"cannot begin \(api_key not configured\); run wandb login, or set WANDB_MODE"):
        make_logger("wandb", Path("run"), 0, {})


@pytest.mark.parametrize("command", ["generate", "distill"])
def test_without_a_key_nothing_is_loaded(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_key(verify: bool) -> bool:
        raise RuntimeError("No API key configured")

    fake = types.ModuleType("wandb")
    fake.__spec__ = importlib.util.spec_from_loader("wandb", None)
    fake.login = no_key  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    loggers._log_in.cache_clear()
    subject = {"generate": "a red mug", "distill": "carv-tiny"}[command]
    said = refusal(capsys, *[command, subject, "--out", "run", "logger=wandb"])
    assert "cannot begin (No API key configured); run wandb login, or set WANDB_MODE=offline" in said
    assert not Path("run").exists()
    monkeypatch.setenv("WANDB_MODE", "offline")
    loggers.check_logger("wandb")  # which needs none


def test_the_real_wandb_keeps_an_offline_run_in_the_folder(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert cli.main([*words, "logger=wandb"]) == 0
    (kept,) = Path("run/wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 30
    while b"grad_norm" not in kept.read_bytes():  # another process of wandb's writes it
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_named_before_any_work(
    name: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # its import fails
    said = refusal(capsys, *words, f"logger={name}")
    assert f"logger={name} needs {name}, which is not installed" in said


def test_a_comparison_has_no_logger(capsys: pytest.CaptureFixture[str]) -> None:
    methods = ["--method", "a", "--method", "b=num_draws=1"]
    said = refusal(capsys, "compare", "--prompt", "a red mug", *methods, "--steps", "1", "logger=wandb")
    assert "logger has no part in a comparison" in said
