"""The built-in trainer with `num_draws=auto`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_host import tiny_config

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
