"""The cost meter: seconds by phase and by timed function, counts, and what is left uncounted."""

from __future__ import annotations

import time
from typing import Any

import pytest

from carv_3d.core.costs import CostMeter
from carv_3d.errors import CarvError


def test_cost_meter_splits_the_seconds_and_counts() -> None:
    meter = CostMeter()
    with meter.phase("outer"):
        time.sleep(0.02)
        with meter.phase("inner"):
            time.sleep(0.05)
    assert 0.05 <= meter.seconds["inner"] < 0.2
    assert 0.02 <= meter.seconds["outer"] < 0.05  # the inner phase is not counted twice
    with pytest.raises(ValueError, match="boom"), meter.phase("broken"):
        raise ValueError("boom")
    assert "broken" in meter.seconds
    meter.count(nfe=16, renders=2)
    meter.count(nfe=16, rays=100)
    assert (meter.nfe, meter.renders, meter.counts["rays"]) == (32, 2, 100)
    assert meter.total_seconds == pytest.approx(sum(meter.seconds.values()))
    again = CostMeter()
    again.load_state_dict(meter.state_dict())
    again.count(renders=1)
    assert again.as_scalars()["renders"] == 3
    assert meter.renders == 2


def test_what_happens_uncounted_leaves_the_meter_as_it_was() -> None:
    meter = CostMeter()
    meter.count(nfe=3)
    with meter.phase("render"):
        pass
    before = meter.state_dict()
    with meter.uncounted(), meter.phase("denoise"):
        meter.count(nfe=50)
    assert meter.state_dict() == before


class Clock(CostMeter):
    """Time passes only on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0
        self._clock = lambda: self.time


def test_a_timed_function_is_a_phase() -> None:
    meter = Clock()

    def inner(items: list[int]) -> int:
        meter.time += 2.0
        return sum(items)

    timed = meter.timed("inner", inner, count="nfe")

    def outer(items: list[int], more: float = 0.0) -> int:
        meter.time += 1.0 + more
        return timed(items)

    assert meter.timed("outer", outer)([3, 4, 5], more=0.5) == 12
    assert meter.seconds == {"inner": 2.0, "outer": 1.5}
    with meter.phase("around"):
        meter.time += 4.0
        timed([1])
    assert meter.seconds == {"inner": 4.0, "outer": 1.5, "around": 4.0}
    assert meter.nfe == 4


def test_a_timed_function_that_raises_is_timed_and_not_counted() -> None:
    meter = Clock()

    def broken(items: list[int]) -> None:
        meter.time += 1.0
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        meter.timed("broken", broken, count="nfe")([1, 2])
    assert meter.seconds == {"broken": 1.0}
    assert meter.nfe == 0  # a batch that ran out of memory is tried again
    with meter.phase("next"):  # nothing of it is left behind
        meter.time += 1.0
    assert meter.seconds["next"] == 1.0


@pytest.mark.parametrize("state", [None, {}, {"seconds": {}}, {"seconds": [], "counts": {}}])
def test_what_is_no_state_leaves_a_meter_as_it_was(state: Any) -> None:
    meter = CostMeter()
    meter.count(nfe=3)
    with pytest.raises(CarvError, match="this is no state of a CostMeter"):
        meter.load_state_dict(state)
    assert meter.nfe == 3
