"""Nothing is kept from step to step: a short soak. `benchmarks/soak.py` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest
import soak

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.core.sds import MOST_KEPT


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_a_few_hundred_steps_keep_no_memory_and_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = NoiseSchedule.scaled_linear()
    monkeypatch.setattr(soak.NoiseSchedule, "scaled_linear", lambda: schedule)
    soak.core_steps(50, lambda step: None)
    meter = soak.Meter("core", 10)
    soak.core_steps(400, meter)
    assert [r.step for r in meter.readings] == list(range(10, 401, 10))
    assert soak.slope(meter.readings) < 8 * 1024  # 37 KiB where each value of grad_clip had an entry of its own
    assert soak.descriptors(meter.readings) == 0
    assert [len(kept) <= MOST_KEPT for kept in schedule.estimators.values()] == [True]


def test_the_slope_is_of_the_second_half() -> None:
    held = [9000, 9000, 9000, 5000, 5300, 5600]
    readings = [soak.Reading("a", 100 * i, size, 6, 0.0) for i, size in enumerate(held)]
    assert soak.slope(readings) == pytest.approx(3.0)
    assert soak.descriptors([*readings, readings[0]._replace(open_files=8)]) == 2


def test_its_figure_has_a_panel_for_each_part(tmp_path: Path) -> None:
    readings = [soak.Reading("core", step, 2**28, 6, 0.1) for step in range(0, 100, 10)]
    soak.image([readings, readings], tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
