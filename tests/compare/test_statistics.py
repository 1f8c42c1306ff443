"""Curves, bands and the ratio to reach a score, against values known beforehand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from carv_3d.compare.reach import first_crossing, reach
from carv_3d.compare.records import RunRecord
from carv_3d.compare.statistics import Bootstrap, mean_curve, sampled


def run(method: str, speed: float, prompt: str = "a", seed: int = 0, end: float = 10, noise: float = 0) -> RunRecord:
    """A run whose score rises as 1 - exp(-speed x)."""
    x = np.linspace(0, end, 21)
    y = 1 - np.exp(-speed * x) + noise
    return RunRecord(method, prompt, seed, Path(method), {"seconds": x, "steps": 4 * x}, {"iou": y})


def test_twice_as_fast_reaches_the_score_in_half_the_time() -> None:
    base = [run("base", 0.05, p, s) for p in "ab" for s in range(2)]
    ours = [run("ours", 0.10, p, s) for p in "ab" for s in range(2)]
    found = reach(base, ours, "iou", "seconds", Bootstrap([*base, *ours]))
    assert found is not None
    assert found.target == pytest.approx(1 - math.exp(-0.5))
    assert found.baseline_at == pytest.approx(10.0)
    assert found.ratio == pytest.approx(0.5, abs=2e-3)
    assert (found.low, found.high) == pytest.approx((0.5, 0.5), abs=2e-3)  # the runs of a side are alike
    assert found.reached == 1.0
    itself = reach(base, base, "iou", "seconds", Bootstrap(base))
    assert itself is not None
    assert itself.ratio == pytest.approx(1.0)


def test_a_score_that_is_never_reached_is_said_so() -> None:
    base, slow = [run("base", 0.2, "a", s) for s in range(3)], [run("slow", 0.1, "a", s) for s in range(3)]
    found = reach(base, slow, "iou", "seconds", Bootstrap([*base, *slow]))
    assert found is not None
    assert math.isinf(found.method_at)
    assert math.isinf(found.ratio)
    assert math.isinf(found.low)
    assert found.tried == pytest.approx(1.0)
    assert found.reached == 0.0
    assert found.words() == "not reached (above 1.00)"


def test_an_interval_with_a_censored_end_keeps_its_other_end() -> None:
    """One prompt of two is quick, the other never comes there: resamples of the slow one alone are censored."""
    base = [run("base", 0.1, p) for p in "ab"]
    ours = [run("ours", 0.4, "a"), run("ours", 0.05, "b")]
    found = reach(base, ours, "iou", "seconds", Bootstrap([*base, *ours]))
    assert found is not None
    assert math.isfinite(found.ratio)
    assert found.low == pytest.approx(0.25, abs=0.01)  # "a" drawn twice: four times as fast
    assert math.isinf(found.high)
    assert found.reached == pytest.approx(0.75, abs=0.04)  # all but "b" drawn twice
    assert found.words().endswith("not reached]")


def test_the_baseline_that_was_there_before_its_end_is_given_the_earlier_point() -> None:
    base = [run("base", 50.0, seed=s) for s in range(2)]
    found = reach(base, base, "iou", "seconds", Bootstrap(base))
    assert found is not None
    assert found.baseline_at < 1.5  # it is at its plateau at once, and not after the ten seconds of its run
    assert found.ratio == 1.0


def test_first_crossing_is_linear_between_points() -> None:
    x = np.tile([0.0, 1.0, 2.0, 4.0], (4, 1))
    x[1] += 0.5  # a row's own x
    y = np.array([[0, 1, 0, 3], [2, 2, 2, 2], [0, 0, 0, 1], [0, 0, 0, 0.5]], float)
    at = first_crossing(x, y, np.array([0.5, 1.0, 0.75, 1.0]))
    assert at.tolist() == [0.5, 0.5, 3.5, math.inf]


def test_the_band_holds_the_standard_error_of_independent_runs() -> None:
    rng = np.random.default_rng(0)
    runs = [run("m", 0.1, str(i), 0, noise=float(e)) for i, e in enumerate(rng.normal(size=60))]
    curve = mean_curve(runs, "iou", "seconds", Bootstrap(runs))
    assert curve is not None
    exact = np.mean([r.metrics["iou"][0] for r in runs])
    assert curve.mean[0] == pytest.approx(exact)
    half = 1.96 * np.std([r.metrics["iou"][0] for r in runs]) / math.sqrt(60)
    assert curve.high[0] - curve.mean[0] == pytest.approx(half, rel=0.15)
    assert curve.mean[0] - curve.low[0] == pytest.approx(half, rel=0.15)


def test_prompts_are_resampled_before_seeds() -> None:
    """Many seeds of two prompts that differ are no evidence on prompts: the band spans both."""
    runs = [run("m", 0.1, p, s, noise=n) for p, n in (("a", 0.0), ("b", 1.0)) for s in range(30)]
    curve = mean_curve(runs, "iou", "seconds", Bootstrap(runs))
    assert curve is not None
    assert curve.high[0] - curve.low[0] == pytest.approx(1.0)


def test_one_run_has_no_band_and_a_curve_ends_with_its_shortest_run() -> None:
    alone = mean_curve([run("m", 0.1)], "iou", "steps", Bootstrap([run("m", 0.1)]))
    assert alone is not None
    assert np.isnan(alone.low).all()
    assert alone.x[-1] == 40.0
    found = sampled([run("m", 0.1), run("m", 0.1, end=6.0)], "iou", "seconds")
    assert found is not None
    assert found[0][-1] == 6.0
    assert sampled([run("m", 0.1)], "iou", "renders") is None


def test_the_target_is_the_same_on_every_axis_where_runs_differ_in_steps() -> None:
    """Three runs of ten seconds that end at the same score, one of them after two thirds of the others' steps."""
    base = [run("base", 0.1, seed=s) for s in range(3)]
    base[0].axes["steps"] = base[0].axes["steps"] * 2 / 3
    for axis, end in (("seconds", 10.0), ("steps", (80 / 3 + 40 + 40) / 3)):
        found = reach(base, base, "iou", axis, Bootstrap(base))
        assert found is not None
        assert found.target == pytest.approx(1 - math.exp(-1.0))
        assert found.baseline_at == pytest.approx(end)
        assert found.ratio == pytest.approx(1.0)


def test_a_baseline_that_does_not_improve_leaves_nothing_to_reach() -> None:
    worse = [run("base", -0.1, seed=s) for s in range(2)]  # it falls from its beginning on
    ours = [run("ours", 0.1, seed=s) for s in range(2)]
    found = reach(worse, ours, "iou", "seconds", Bootstrap([*worse, *ours]))
    assert found is not None
    assert math.isnan(found.ratio)
    assert math.isnan(found.low)
    assert found.words() == "—"
