"""A run of a comparison that is stopped and resumed keeps its training time: it gets its budget once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from carv_3d.compare.scored_run import Length, ScoredRun
from carv_3d.errors import CarvError
from carv_3d.generate.config import load_config
from carv_3d.io.tables import read_metrics
from carv_3d.runs.checkpoint import load_checkpoint
from carv_3d.runs.progress import Display

NAMES = "system.guidance.pretrained_model_name_or_path=nobody/nothing"


class Host:
    """A trainer whose steps take half a second of training time, and nothing else."""

    device = "cpu"

    def __init__(self) -> None:
        self.config = load_config(None, [NAMES], "a zeppelin")
        self.step, self.progress = 0, None

    def train_step(self) -> dict[str, float]:
        self.step += 1
        return {"step": float(self.step), "seconds": 0.5}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "progress": self.progress}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.progress = state["step"], state["progress"]


def begun(folder: Path, length: Length) -> ScoredRun:
    run = ScoredRun(Host(), folder, Display(write=lambda text: None), length)  # type: ignore[arg-type]
    run.scores = dict  # type: ignore[method-assign]
    run.begin("one")
    return run


@pytest.mark.parametrize("how", ["paused", "killed"])
def test_a_resumed_run_has_the_rest_of_its_budget(tmp_path: Path, how: str) -> None:
    length = Length(3.0, None, 3)
    first = begun(tmp_path, length)
    first.advance(1.0)  # to its first point, where it is saved
    assert (first.clock, first.host.step) == (1.0, 2)
    first.advance(0.5)  # between two points
    assert load_checkpoint(first.checkpoint)[0]["step"] == 2
    done = 1.0
    if how == "paused":
        first.pause()
        done = 1.5
    second = begun(tmp_path, length)
    assert (second.clock, second.done, second.host.step) == (done, done, 2 * done)
    assert second.host.progress is not None
    while not second.finished:
        second.advance(9.0)
    assert (second.clock, second.host.step) == (3.0, 6)
    assert [row["step"] for row in read_metrics(second.metrics)] == [0, 1, 2, 3, 4, 5, 6]
    assert begun(tmp_path, length).finished


def test_a_row_without_seconds_does_not_stop_the_clock(tmp_path: Path) -> None:
    length = Length(3.0, None, 3)
    first = begun(tmp_path, length)
    while first.clock < 1.0:
        first.advance(0.5)
    rows = first.metrics.read_text().splitlines()
    cells = rows[2].split(",")
    cells[rows[0].split(",").index("seconds")] = ""
    first.metrics.write_text("\n".join([*rows[:2], ",".join(cells), *rows[3:]]) + "\n")
    assert 0 < begun(tmp_path, length).clock < first.clock


def test_schedules_stand_at_the_share_of_the_budget(tmp_path: Path) -> None:
    first = begun(tmp_path / "a", Length(2.0, None, 1))
    first.advance(1.5)
    assert first.host.progress == 0.5  # of the last step's beginning
    fixed = begun(tmp_path / "b", Length(2.0, None, 1, scheduled=False))
    fixed.advance(1.5)
    assert fixed.host.progress is None


def test_checkpoints_that_cannot_be_read_are_one_sentence_for_a_comparison(tmp_path: Path) -> None:
    for name in ("checkpoint", "checkpoint.previous"):
        (tmp_path / name).write_text("x")
    with pytest.raises(
        CarvError, match=r"can be read: .*; delete that folder, and the same command makes the run again"
    ):
        begun(tmp_path, Length(3.0, None, 3))


@pytest.mark.parametrize("text", [None, "step,loss\n1,1\n2,1\n"])
def test_without_its_figures_a_run_of_a_comparison_is_made_again(tmp_path: Path, text: str | None) -> None:
    length = Length(3.0, None, 3)
    begun(tmp_path, length).advance(1.0)
    path = tmp_path / "metrics.csv"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(CarvError, match=r"metrics.csv is [^;]*; delete that folder, and the same command makes"):
        begun(tmp_path, length)
    assert sorted(p.name for p in tmp_path.glob("metrics*")) == ([] if text is None else ["metrics.csv"])
