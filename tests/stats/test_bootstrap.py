"""Bootstrap intervals: by hand, by coverage, and none where too little was measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from carv_3d.core.variance import total_variance
from carv_3d.errors import CarvError
from carv_3d.stats.bootstrap import (
    LEVEL,
    MIN_SAMPLES,
    RESAMPLES,
    Interval,
    _variances,
    counts,
    ecm_interval,
    ends,
    interval,
    mean_interval,
    picks,
    ratio_of_means,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_an_interval_is_shown_from_the_least_number_on() -> None:
    values = torch.arange(1 + RESAMPLES).double()
    assert not interval(values, MIN_SAMPLES - 1).known
    assert interval(values, MIN_SAMPLES - 1).text() == "0.00"
    shown = interval(values, MIN_SAMPLES)
    assert shown.known
    assert (shown.low, shown.high) == (pytest.approx(1 + 0.025 * 1999), pytest.approx(1 + 0.975 * 1999))
    assert Interval(1.5, 1.25, 2.0).text(".1f") == "1.5 [1.2, 2.0]"
    assert interval(values, 5, least=5).known
    assert not Interval(1.5, low=1.25).known
    assert not Interval(1.5, high=2.0).known


def test_the_first_resample_is_the_sample_itself() -> None:
    assert picks(4).shape == (1 + RESAMPLES, 4)
    assert picks(4)[0].tolist() == [0, 1, 2, 3]
    assert torch.equal(picks(4), picks(4))
    assert not torch.equal(picks(4), picks(4, seed=1))
    assert counts(4)[0].tolist() == [1, 1, 1, 1]
    assert torch.equal(counts(4).sum(1), torch.full((1 + RESAMPLES,), 4.0, dtype=torch.float64))


def test_ends_leave_out_what_is_not_finite() -> None:
    low, high = ends([1.0, 2.0, 3.0, math.nan, math.inf])
    assert (low, high) == (pytest.approx(1.05), pytest.approx(2.95))
    assert LEVEL == 0.95
    assert all(math.isnan(end) for end in ends([math.nan]))
    low, high = ends(np.array([[0.0, 10.0], [1.0, 11.0], [math.nan, 12.0]]))
    assert low.tolist() == pytest.approx([0.025, 10.025])


def test_the_interval_of_a_mean_has_the_width_of_its_standard_error() -> None:
    x = normal(400)
    interval = mean_interval(x)
    assert interval.value == pytest.approx(float(x.mean()))
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * float(x.std()) / 20, rel=0.1)


def test_a_ratio_resamples_items_with_both_of_their_values() -> None:
    base = 1 + normal(50).abs()
    ratio = ratio_of_means(3 * base, base)
    assert (ratio.value, ratio.low, ratio.high) == (pytest.approx(3), pytest.approx(3), pytest.approx(3))
    with pytest.raises(CarvError, match="same items"):
        ratio_of_means(base, base[:5])
    with pytest.raises(CarvError, match="mean of zero"):
        ratio_of_means(base, torch.zeros(50))


def test_the_interval_of_a_ratio_of_paired_shares_covers_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carv_3d.stats.bootstrap.RESAMPLES", 200)
    g = torch.Generator().manual_seed(0)
    truth, covered, widths = 0.6 / 0.8, 0, []
    for _ in range(200):
        base = torch.rand(200, generator=g) < 0.8
        method = base & (torch.rand(200, generator=g) < 0.75)  # a share 0.6, of the same items
        ratio = ratio_of_means(method.double(), base.double())
        assert ratio.value == pytest.approx(float(method.sum()) / float(base.sum()))
        covered += ratio.low <= truth <= ratio.high
        widths.append(ratio.high - ratio.low)
    assert 0.89 * 200 <= covered <= 0.99 * 200
    # binomial among those that the other has: 2 * 1.96 * sqrt(0.75 * 0.25 / 160)
    assert sum(widths) / 200 == pytest.approx(0.134, rel=0.1)


def test_the_interval_of_an_ecm_covers_the_truth() -> None:
    covered = 0  # variances 4 and 1 in 5 dimensions, costs 1 and 2: ECM 2
    for i in range(30):
        interval = ecm_interval(2 * normal(60, 5, seed=2 * i), 1.0, normal(60, 5, seed=2 * i + 1), 2.0)
        assert interval.low < interval.value < interval.high
        covered += interval.low < 2.0 < interval.high
    assert covered >= 25  # 28.5 expected, sigma 1.2


def test_the_interval_of_an_ecm_is_that_of_resampled_gradients() -> None:
    base, method = normal(12, 30), 0.5 * normal(9, 30, seed=1)
    interval = ecm_interval(base, 3.0, method, 1.0)
    first, second = picks(12)[1:200], picks(9, seed=1)[1:200]
    values = [
        3 * total_variance(base[i]) * 12 / 11 / (total_variance(method[j]) * 9 / 8) for i, j in zip(first, second)
    ]
    assert interval.value == pytest.approx(3 * total_variance(base) / total_variance(method))
    assert interval.low == pytest.approx(float(np.quantile(values, 0.025)), rel=0.1)
    assert interval.high == pytest.approx(float(np.quantile(values, 0.975)), rel=0.1)
    assert not ecm_interval(base[:7], 3.0, method, 1.0).known
    alike = ecm_interval(base, 1.0, base, 1.0)
    assert alike.low < 0.9 < alike.value < 1.1 < alike.high  # the sides are resampled apart


def test_the_variance_of_a_resample_is_that_of_its_items_and_unbiased() -> None:
    x = normal(12, 30)
    resampled, picked = _variances(x, 3), picks(12, 3)
    for i in (1, 7, 200):
        assert float(resampled[i]) == pytest.approx(total_variance(x[picked[i]]) * 12 / 11)
    assert float(resampled[1:].mean()) == pytest.approx(total_variance(x), rel=0.01)
    assert not torch.equal(resampled, _variances(x, 4))
