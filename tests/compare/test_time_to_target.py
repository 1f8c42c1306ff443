"""The ratio of times to the baseline's final score, against values known beforehand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from made_runs import made_run, rising

from carv_3d.compare.records import RunRecord
from carv_3d.compare.statistics import Bootstrap
from carv_3d.compare.time_to_target import TimeToTarget, first_crossing, time_to_target


def ratio(base: list[RunRecord], method: list[RunRecord], axis: str = "seconds") -> TimeToTarget:
    result = time_to_target(base, method, "iou", axis, Bootstrap([*base, *method]))
    assert result is not None
    return result


def test_twice_as_fast_reaches_the_score_in_half_the_time() -> None:
    base = [rising("base", 0.05, p, s) for p in "abcde" for s in range(2)]
    method = [rising("ours", 0.10, p, s) for p in "abcde" for s in range(2)]
    result = ratio(base, method)
    assert result.target == pytest.approx(1 - math.exp(-0.5))
    assert result.baseline_at == pytest.approx(10.0)
    assert result.ratio == pytest.approx(0.5, abs=2e-3)
    assert (result.low, result.high) == pytest.approx((0.5, 0.5), abs=2e-3)  # the runs of a side are alike
    assert (result.reached, result.runs, result.baseline_runs) == (1.0, 10, 10)
    assert result.tried == pytest.approx(1.0)
    assert ratio(base, base).ratio == pytest.approx(1.0)
    assert time_to_target(base, method, "iou", "renders", Bootstrap([*base, *method])) is None


@pytest.mark.parametrize(("n_base", "n_ours"), [(4, 9), (9, 4), (5, 5)])
def test_an_interval_takes_five_runs_a_side(n_base: int, n_ours: int) -> None:
    base = [rising("base", 0.05, seed=s) for s in range(n_base)]
    method = [rising("ours", 0.1, seed=s) for s in range(n_ours)]
    result = ratio(base, method)
    assert math.isnan(result.low) == math.isnan(result.high) == (min(n_base, n_ours) < 5)
    assert (result.baseline_runs, result.runs) == (n_base, n_ours)
    assert result.text().startswith("0.50 [0.50") if min(n_base, n_ours) >= 5 else result.text() == "0.50"


@pytest.mark.parametrize("prompts", ["abcd", "abcde"])
def test_an_interval_over_prompts_takes_five_of_them(prompts: str) -> None:
    base, method = ([rising(m, 0.1, p, s) for p in prompts for s in range(3)] for m in ("base", "ours"))
    result = ratio(base, method)
    assert math.isnan(result.low) == math.isnan(result.high) == (len(prompts) < 5)
    assert (result.runs, result.independent) == (3 * len(prompts), len(prompts))


def test_a_score_that_is_never_reached_is_named_so() -> None:
    base, slow = [rising("base", 0.2, seed=s) for s in range(5)], [rising("slow", 0.1, seed=s) for s in range(5)]
    result = ratio(base, slow)
    assert math.isinf(result.method_at)
    assert math.isinf(result.ratio)
    assert math.isinf(result.low)
    assert (result.tried, result.reached) == (pytest.approx(1.0), 0.0)
    assert result.text() == "not reached (above 1.00)"
    assert replace(result, low=0.9).text() == "not reached (above 1.00) [from 0.90]"


def test_the_ends_are_the_central_95_percent_of_the_resampled_ratios() -> None:
    """The method's mean rises as v t / 10, v its runs' mean, so that the ratio is 1 / v."""
    v = 1.5 + np.random.default_rng(0).exponential(1.0, size=12)
    base = [made_run({0: 0.0, 10: 1.0}, "base", seed=s) for s in range(12)]
    method = [made_run({0: 0.0, 10: x}, "ours", seed=s) for s, x in enumerate(v)]
    result, bootstrap = ratio(base, method), Bootstrap([*base, *method])
    ratios = 1 / bootstrap.means(method, v[:, None])[:, 0]
    assert result.ratio == pytest.approx(1 / v.mean())
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])), rel=1e-3)


def test_what_was_tried_is_the_length_of_the_methods_own_runs() -> None:
    base = [rising("base", 0.2, seed=s) for s in range(2)]
    result = ratio(base, [rising("short", 0.2, seed=s, end=5.0) for s in range(2)])
    assert result.text() == "not reached (above 0.50)"


def test_an_interval_with_a_censored_end_keeps_its_other_end() -> None:
    """Three prompts of five are quick, two never come there: resamples with more slow ones than quick are censored."""
    base = [rising("base", 0.1, p) for p in "abcde"]
    method = [rising("ours", speed, p) for p, speed in zip("abcde", (0.4, 0.4, 0.4, 0.05, 0.05))]
    result = ratio(base, method)
    assert math.isfinite(result.ratio)
    assert result.low == pytest.approx(0.25, abs=0.01)  # quick ones alone: four times as fast
    assert math.isinf(result.high)
    assert result.reached == pytest.approx(0.683, abs=0.04)  # at most two of five are slow
    assert result.text().endswith("not reached]")


def test_the_target_is_the_end_of_the_baseline_and_not_its_best() -> None:
    base = [made_run({0: 0.0, 5: 0.9, 10: 0.5}, "base", seed=s) for s in range(2)]
    method = [made_run({0: 0.0, 10: 1.0}, "ours", seed=s) for s in range(2)]
    result = ratio(base, method)
    assert result.target == 0.5
    assert result.baseline_at == pytest.approx(10 * 0.5 / 1.8, abs=0.06)  # on its way up
    assert result.method_at == pytest.approx(5.0, abs=0.06)


def test_the_baseline_that_was_there_before_its_end_is_given_the_earlier_point() -> None:
    base = [rising("base", 50.0, seed=s) for s in range(2)]
    result = ratio(base, base)
    assert result.baseline_at < 1.5  # it is at its plateau at once, and not after the ten seconds of its run
    assert result.ratio == 1.0


def test_a_resample_in_which_the_baseline_does_not_improve_counts_against_the_method() -> None:
    """Four prompts rise a little, the fifth falls: drawn often enough, the baseline's mean has nothing to reach."""
    ends = dict(zip("abcde", (0.4, 0.4, 0.4, 0.4, -1.0)))
    base = [made_run({0: 0.0, 10: end}, "base", prompt) for prompt, end in ends.items()]
    method = [made_run({0: 0.0, 10: 1.0}, "ours", prompt) for prompt in ends]
    result = ratio(base, method)
    assert result.target == pytest.approx(0.12)
    assert result.ratio == pytest.approx(0.12)
    assert math.isfinite(result.low)
    assert math.isinf(result.high)


def test_a_baseline_that_does_not_improve_leaves_nothing_to_reach() -> None:
    worse = [rising("base", -0.1, seed=s) for s in range(5)]  # it falls from its beginning on
    result = ratio(worse, [rising("ours", 0.1, seed=s) for s in range(5)])
    assert math.isnan(result.ratio)
    assert math.isnan(result.low)
    assert result.text() == "—"


def test_first_crossing_is_linear_between_points() -> None:
    x = np.tile([0.0, 1.0, 2.0, 4.0], (4, 1))
    x[1] += 0.5  # a row's own x
    x[2] *= 2
    y = np.array([[0, 1, 0, 3], [2, 2, 2, 2], [0, 0, 0, 1], [0, 0, 0, 0.5]], float)
    at = first_crossing(x, y, np.array([0.5, 1.0, 0.75, 1.0]))
    assert at.tolist() == [0.5, 0.5, 7.0, math.inf]


def test_the_target_is_the_same_on_every_axis_where_runs_differ_in_steps() -> None:
    """Three runs of ten seconds that end at the same score, one of them after two thirds of the others' steps."""
    base = [rising("base", 0.1, seed=s) for s in range(3)]
    base[0].axes["steps"] = base[0].axes["steps"] * 2 / 3
    for axis, end in (("seconds", 10.0), ("steps", (80 / 3 + 40 + 40) / 3)):
        result = ratio(base, base, axis)
        assert result.target == pytest.approx(1 - math.exp(-1.0))
        assert result.baseline_at == pytest.approx(end)
        assert result.ratio == pytest.approx(1.0)
