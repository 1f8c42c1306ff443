"""Mean curves and their bands, against values known beforehand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from made_runs import made_run, rising

from carv_3d.compare.statistics import POINTS, Bootstrap, independent, mean_curve, paced, sampled
from carv_3d.stats.bootstrap import MIN_RUNS, RESAMPLES


def test_the_band_holds_the_standard_error_of_independent_runs() -> None:
    rng = np.random.default_rng(0)
    runs = [rising("m", 0.1, str(i), 0, noise=float(e)) for i, e in enumerate(rng.normal(size=60))]
    curve = mean_curve(runs, "iou", "seconds", Bootstrap(runs))
    assert curve is not None
    exact = np.mean([r.metrics["iou"][0] for r in runs])
    assert curve.mean[0] == pytest.approx(exact)
    half = 1.96 * np.std([r.metrics["iou"][0] for r in runs]) / math.sqrt(60)
    assert curve.high[0] - curve.mean[0] == pytest.approx(half, rel=0.15)
    assert curve.mean[0] - curve.low[0] == pytest.approx(half, rel=0.15)


def test_prompts_are_resampled_before_seeds() -> None:
    """Many seeds of five prompts that differ are no evidence on prompts: the band is that of five figures."""
    runs = [rising("m", 0.1, p, s, noise=n) for n, p in enumerate("abcde") for s in range(30)]
    curve = mean_curve(runs, "iou", "seconds", Bootstrap(runs))
    assert curve is not None
    assert (curve.runs, curve.independent) == (150, 5)
    assert curve.high[0] - curve.low[0] == pytest.approx(2 * 1.96 * np.std(range(5)) / math.sqrt(5), rel=0.1)


def test_runs_of_fewer_than_five_prompts_are_too_few_however_many() -> None:
    """Prompts are drawn first, so that they are what an interval counts; runs are where there is one prompt."""
    runs = [rising("m", 0.1, p, s) for p in "abcd" for s in range(30)]
    curve = mean_curve(runs, "iou", "seconds", Bootstrap(runs))
    assert curve is not None
    assert (curve.runs, curve.independent) == (120, 4)
    assert np.isnan(curve.low).all()
    assert independent(runs[:30]) == 30


def test_a_prompt_that_is_drawn_gives_as_many_seeds_as_it_has() -> None:
    runs = [rising("m", 0.1, "a", s) for s in range(3)] + [rising("m", 0.1, "b", 5)]
    bootstrap = Bootstrap([*runs, *(replace(run, method="other") for run in runs)])
    assert bootstrap.keys == [("a", 0), ("a", 1), ("a", 2), ("b", 5)]
    mean_a, mean_b = bootstrap.counts[:, :3].sum(1), bootstrap.counts[:, 3]
    assert bootstrap.counts.shape == (RESAMPLES, 4)
    assert set(mean_a / 3 + mean_b) == {2.0}  # two prompts in each resample
    assert mean_b.mean() == pytest.approx(1, abs=0.06)
    assert bootstrap.counts[:, :3].mean(0) == pytest.approx([1, 1, 1], abs=0.12)
    assert (bootstrap.counts == Bootstrap(runs).counts).all()  # the same at every call, whatever the methods


def test_the_mean_of_a_resample_weighs_runs_as_often_as_they_were_drawn() -> None:
    runs = [rising("m", 0.1, "a", s) for s in range(2)]
    bootstrap = Bootstrap([*runs, rising("m", 0.1, "b")])
    values = np.array([[1.0, 10.0], [3.0, 30.0]])
    means, drawn = bootstrap.means(runs, values), bootstrap.counts[:, :2]
    some = drawn.sum(1) > 0
    assert not some.all()
    assert np.isnan(means[~some]).all()
    assert means[some, 0] == pytest.approx((drawn[some] * [1, 3]).sum(1) / drawn[some].sum(1))
    assert means[some, 1] == pytest.approx(10 * means[some, 0])


def test_there_is_no_band_below_five_runs() -> None:
    runs = [rising("m", 0.1, seed=s, noise=s) for s in range(MIN_RUNS)]
    for n in (1, MIN_RUNS - 1, MIN_RUNS):
        curve = mean_curve(runs[:n], "iou", "steps", Bootstrap(runs[:n]))
        assert curve is not None
        assert curve.runs == n
        assert curve.mean[0] == pytest.approx((n - 1) / 2)
        assert np.isnan(curve.low).all() == np.isnan(curve.high).all() == (n < MIN_RUNS)


def test_a_curve_is_over_what_all_runs_have() -> None:
    sample = sampled([rising("m", 0.1), rising("m", 0.1, end=6.0), made_run({1.0: 0.0, 9.0: 1.0})], "iou", "seconds")
    assert sample is not None
    x, y = sample
    assert (x[0], x[-1], len(x), y.shape) == (1.0, 6.0, POINTS, (3, POINTS))
    assert y[2] == pytest.approx((x - 1) / 8)
    assert sampled([rising("m", 0.1)], "iou", "renders") is None
    assert sampled([made_run({0.0: 1.0, 1.0: 2.0}), made_run({2.0: 1.0, 3.0: 2.0})], "iou", "seconds") is None
    combined = sampled([made_run({0.0: 1.0, 2.0: 2.0}), made_run({2.0: 5.0, 3.0: 6.0})], "iou", "seconds")
    assert combined is not None
    assert (combined[0].tolist(), combined[1].tolist()) == ([2.0], [[2.0], [5.0]])


def test_a_dense_curve_is_smoothed_and_a_sparse_one_is_not() -> None:
    points = {float(i): float(i % 2) for i in range(200)}
    dense = sampled([made_run(points)], "iou", "seconds")
    sparse = sampled([made_run(dict(list(points.items())[:50]))], "iou", "seconds")
    assert dense is not None
    assert sparse is not None
    assert np.abs(dense[1][0][10:-10] - 0.5).max() < 0.1
    assert sparse[1].max() - sparse[1].min() > 0.9


def test_a_paced_curve_goes_from_its_first_point_to_its_last() -> None:
    runs = [made_run({1.0: 0.0, 5.0: 1.0}), made_run({50.0: 2.0, 100.0: 4.0})]  # logs begin at step 1, or 50
    at_equal_axis = paced(runs, "iou", "seconds")
    assert at_equal_axis is not None
    x, y = at_equal_axis
    assert x.shape == y.shape == (2, POINTS)
    assert (x[:, 0].tolist(), x[:, -1].tolist()) == ([1.0, 50.0], [5.0, 100.0])
    assert (y[:, 0].tolist(), y[:, -1].tolist()) == ([0.0, 2.0], [1.0, 4.0])
    assert y[1] == pytest.approx(2 + 2 * np.linspace(0, 1, POINTS))
    assert paced([*runs, rising("m", 0.1)], "iou", "renders") is None
