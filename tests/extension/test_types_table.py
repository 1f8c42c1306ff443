"""`benchmarks/threestudio_types.py` measures every stock type that has a counterpart."""

from __future__ import annotations

from pathlib import Path

import threestudio_types as table

from carv_3d.hosts.counterparts import COUNTERPARTS

ELSEWHERE = {"mvdream-multiview-diffusion-guidance"}  # of an extension, not in threestudio's checkout


def test_every_type_of_threestudio_is_measured_by_its_recorded_gradients() -> None:
    assert set(table.RECORDED) == set(COUNTERPARTS) - ELSEWHERE
    for name, _ in table.RECORDED.values():
        text = (Path(__file__).parent / name).read_text()
        assert "stock_gradient" in text
        assert "recorded.check_gradients(" in text  # which the benchmark listens to
