"""The cost meter: seconds by phase, counts, and what is left uncounted."""

from __future__ import annotations

import time

import pytest

from carv_3d.core.costs import CostMeter


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
