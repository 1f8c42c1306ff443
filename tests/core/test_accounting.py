"""Accounting against numbers known by hand, by a slow reference, and by construction."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from carv_3d.core.accounting import (
    CostMeter,
    Welford,
    ecm,
    ecm_interval,
    group_draws,
    parameter_gradients,
    re,
    re_interval,
    total_variance,
    variance_split,
)
from carv_3d.core.designs import Design
from carv_3d.core.estimator import CarvEstimator, EstimatorOptions
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_welford_by_hand_and_far_from_zero() -> None:
    w = Welford()
    for x in (1.0, 2.0, 6.0):
        w.update(torch.tensor([x + 1e9, -x], dtype=torch.float64))
    assert w.mean.tolist() == [1e9 + 3, -3]
    assert w.variance == pytest.approx(14)  # 7 in each of the two: a sum of squares in float32 would be lost
    with pytest.raises(CarvError, match="two samples"):
        _ = Welford().variance
    with pytest.raises(CarvError, match="keep one shape"):
        w.update(torch.ones(3))


def test_welford_merges_and_takes_the_gradients_of_several_parameters() -> None:
    x = normal(20, 7)
    left, right = Welford(), Welford()
    for i, row in enumerate(x):
        (left if i < 6 else right).update([row[:3].view(3, 1), row[3:]])
    left.merge(right)
    left.merge(Welford())
    assert left.count == 20
    torch.testing.assert_close(left.mean, x.mean(0))
    assert left.variance == pytest.approx(float(x.var(0).sum())) == pytest.approx(total_variance(x))


def test_split_by_hand() -> None:
    # within: variances 2 and 8, mean 5. Between means 1 and 5: 8; less 5/2 of the draws' own
    split = variance_split(torch.tensor([[[0.0], [2.0]], [[3.0], [7.0]]]))
    assert (split.s_in2, split.s_out2, split.upstream) == (5, 5.5, 2)
    assert split.variance(R=2, units=5) == pytest.approx(5.5 / 2 + 5 / 10)
    assert split.upstream_share == pytest.approx(5.5 / 10.5)


def test_split_finds_what_was_put_in() -> None:
    R, M, D = 4000, 4, 3
    draws = 0.5 * normal(R, 1, D) + 2.0 * normal(R, M, D, seed=1)
    split = variance_split(draws)
    assert split.s_out2 == pytest.approx(0.25 * D, rel=0.3)
    assert split.s_in2 == pytest.approx(4.0 * D, rel=0.05)
    assert split.variance(1, M) == pytest.approx(total_variance(draws.mean(1)), rel=1e-9)
    streamed = variance_split(rows for rows in draws)
    assert streamed.s_out2 == pytest.approx(split.s_out2)


def test_split_of_an_estimator_predicts_the_variance_of_its_steps() -> None:
    """Groups under strata count as one draw; taking their draws for independent would be wrong."""
    schedule, g = NoiseSchedule.scaled_linear(), torch.Generator().manual_seed(0)
    options = EstimatorOptions(num_draws=8, proposal="uniform", stratify="render")
    estimator = CarvEstimator(schedule, options)
    J = normal(2, 2).float()

    def residual(z_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:  # most of the noise is in t
        alpha, sigma = schedule.alpha(t).view(-1, 1, 1, 1), schedule.sigma(t).view(-1, 1, 1, 1)
        return (z_t - sigma * eps) / alpha * (t.view(-1, 1, 1, 1) / 300) + 0.1 * eps

    def renders(n: int) -> Tensor:
        return 1 + 0.3 * torch.randn(n, 2, 1, 1, generator=g)

    estimator.set_range(20, 600)
    z = renders(2000)
    groups = [estimator.estimate_residual(z, residual, generator=g).grad.flatten(1) @ J for _ in range(3)]
    split = variance_split(torch.stack(groups, 1))
    steps = estimator.estimate_residual(renders(4000), residual, generator=g).grad.flatten(1) @ J
    measured = total_variance(steps.view(2000, 2, 2).mean(1))  # R = 2 at K = 8
    assert split.variance(R=2, units=Design("render").unit(8) // 8) == pytest.approx(measured, rel=0.1)

    out = estimator.estimate_residual(z, residual, generator=g)
    as_if = variance_split(group_draws(out.residual.flatten(2), 1) @ J)
    assert as_if.s_in2 / 8 > 1.3 * split.s_in2  # strata gained what this does not see


def test_group_draws() -> None:
    x = torch.arange(12.0).view(1, 6, 2)
    assert group_draws(x, 2)[0].tolist() == [[1, 2], [5, 6], [9, 10]]
    assert group_draws(x, 6)[0].tolist() == [[5, 6]]
    with pytest.raises(CarvError, match="units of 4"):
        group_draws(x, 4)


def test_parameter_gradients_average_to_the_gradient_of_the_loss() -> None:
    g = torch.Generator().manual_seed(0)
    theta, bias, unused = (torch.randn(3, generator=g).requires_grad_() for _ in range(3))
    latents = torch.stack([(theta * (r + 1)).sin() + bias**2 for r in range(2)]).view(2, 3, 1, 1)
    estimator = CarvEstimator(NoiseSchedule.scaled_linear(), EstimatorOptions(num_draws=4, proposal="weight"))
    out = estimator.estimate(latents, lambda z_t, t: z_t.sin(), generator=g)
    weighted = out.weights[..., None, None, None] * out.residual
    parts = parameter_gradients(latents, [theta, bias, unused], group_draws(weighted, 2))
    assert parts.shape == (2, 2, 9)
    out.loss.backward()
    expected = torch.cat([theta.grad, bias.grad, torch.zeros(3)])  # type: ignore[list-item]
    torch.testing.assert_close(parts.mean((0, 1)), expected)


def test_ecm_and_re_by_hand() -> None:
    assert ecm(12.0, 2.0, 3.0, 4.0) == 2.0
    assert re(6.0, 3.0) == 2.0


def test_ecm_interval_covers_the_truth() -> None:
    # variances 4 and 1 in 5 dimensions, costs 1 and 2: ECM 2
    covered, g = 0, torch.Generator().manual_seed(0)
    for i in range(60):
        base, method = 2 * normal(60, 5, seed=2 * i), normal(60, 5, seed=2 * i + 1)
        interval = ecm_interval(base, 1.0, method, 2.0, level=0.9, resamples=300, generator=g)
        assert interval.low < interval.value < interval.high
        covered += interval.low < 2.0 < interval.high
    assert 46 <= covered <= 60  # 54 expected, sigma 2.3


def test_interval_agrees_with_resampling_the_gradients_themselves() -> None:
    base, method, seconds = normal(12, 30), 0.5 * normal(9, 30, seed=1), 1 + normal(12, seed=2).abs()
    got = ecm_interval(base, seconds, method, 1.0, resamples=500, generator=torch.Generator().manual_seed(5))
    g = torch.Generator().manual_seed(5)
    first, second = torch.randint(12, (500, 12), generator=g), torch.randint(9, (500, 9), generator=g)
    values = torch.tensor(
        [
            total_variance(base[i]) * 12 / 11 * float(seconds[i].mean()) / (total_variance(method[j]) * 9 / 8)
            for i, j in zip(first, second)
        ]
    ).double()
    assert got.low == pytest.approx(float(values.quantile(0.025)))
    assert got.high == pytest.approx(float(values.quantile(0.975)))
    assert re_interval(base, method, resamples=10).value == pytest.approx(total_variance(base) / total_variance(method))
    with pytest.raises(CarvError, match=r"need \(12,\)"):
        ecm_interval(base, torch.ones(3), method, 1.0)


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
