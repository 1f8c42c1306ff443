"""The built-in trainer with `num_draws=auto`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_host import tiny_config

from carv_3d.core.auto_draws import MAX_RENDERS
from carv_3d.generate.trainer import TextTo3D


def test_what_passes_between_two_steps_is_left_out_of_what_auto_measures(sd_folder: Path, sd_teacher: Any) -> None:
    host = TextTo3D(tiny_config(sd_folder, "system.guidance.num_draws=auto"), sd_teacher)
    skipped: list[float] = []
    assert host.guidance.auto is not None
    host.guidance.auto.skip = skipped.append  # type: ignore[method-assign]
    host.train_step()
    assert skipped == []
    assert host._ended is not None
    host._ended -= 100.0
    host.train_step()
    assert len(skipped) == 1
    assert skipped[0] >= 100.0


def test_a_time_per_step_is_filled_with_renders(sd_folder: Path, sd_teacher: Any) -> None:
    given = ["system.guidance.num_draws=auto", "trainer.step_seconds=1000", "data.batch_size=2"]
    host = TextTo3D(tiny_config(sd_folder, *given), sd_teacher)
    metrics = [host.train_step() for _ in range(11)]
    assert [m["renders"] for m in metrics[:10]] == [2 * n for n in range(1, 11)]
    assert metrics[9]["R_auto"] == MAX_RENDERS  # seconds enough for all of them
    assert metrics[10]["renders"] - metrics[9]["renders"] == MAX_RENDERS
    fixed = TextTo3D(tiny_config(sd_folder, given[0], given[2]), sd_teacher)  # resumed without a time
    fixed.load_state_dict(host.state_dict())
    assert fixed.train_step()["renders"] - metrics[10]["renders"] == 2
    assert "R_auto" not in TextTo3D(tiny_config(sd_folder, given[0]), sd_teacher).train_step()
