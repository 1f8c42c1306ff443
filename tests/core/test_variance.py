"""Variance accounting against numbers known by hand, and against what was put in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from carv_3d.core.estimator import CarvEstimator, EstimatorOptions
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.core.variance import (
    cross_covariance,
    ecm,
    flat_gradient,
    gradients,
    half_square,
    re,
    strata_variance,
    total_variance,
)
from carv_3d.errors import CarvError


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_total_variance_by_hand() -> None:
    assert total_variance(torch.tensor([[1.0, -1.0], [2.0, -2.0], [6.0, -6.0]])) == pytest.approx(14)  # 7 in each
    assert total_variance(1e6 + torch.tensor([[1.0], [2.0], [6.0]])) == pytest.approx(7, rel=1e-3)
    with pytest.raises(CarvError, match="two pairs"):
        total_variance(torch.ones(1, 3))


def test_ratios_and_variances_of_nothing_are_one_sentence() -> None:
    with pytest.raises(CarvError, match="ECM divides by the method's variance times cost, which is 0"):
        ecm(1, 0, 1, 0)
    with pytest.raises(CarvError, match="RE divides by the method's variance, which is 0"):
        re(1.0, 0.0)
    assert ecm(torch.ones(1), torch.ones(1), torch.zeros(1), torch.ones(1)).isinf().all()
    for wrong, said in (([], "samples is a list; it must be a torch tensor"), (torch.tensor(1.0), "two pairs")):
        with pytest.raises(CarvError, match=said):
            total_variance(wrong)  # type: ignore[arg-type]
    with pytest.raises(CarvError, match="b is None; it must be a torch tensor"):
        cross_covariance(torch.ones(2, 1), None)  # type: ignore[arg-type]


def test_half_square_is_a_sample_of_the_variance_whole_or_in_parts() -> None:
    a, b = normal(20_000, 3), normal(20_000, 3, seed=1)
    assert float(half_square(a - b)) / 20_000 == pytest.approx(3.0, rel=0.03)
    assert float(half_square([(a - b)[:, :1], (a - b)[:, 1:]])) == pytest.approx(float(half_square(a - b)))
    assert float(half_square(torch.tensor([3.0, 4.0]))) == 12.5


def test_the_parts_of_the_variance_are_what_was_put_in() -> None:
    n, d = 4000, 3
    upstream = 0.5 * normal(n, d)
    a, b = upstream + 2.0 * normal(n, d, seed=1), upstream + 2.0 * normal(n, d, seed=2)
    s_out2, v_in = cross_covariance(a, b), float(half_square(a - b)) / n
    assert s_out2 == pytest.approx(0.25 * d, rel=0.3)
    assert v_in == pytest.approx(4.0 * d, rel=0.05)
    assert s_out2 + v_in == pytest.approx(total_variance(a), rel=0.05)
    with pytest.raises(CarvError, match="one shape"):
        cross_covariance(a, b[:5])


def test_the_parts_predict_the_variance_of_an_estimators_steps_under_strata() -> None:
    schedule, g = NoiseSchedule.scaled_linear(), torch.Generator().manual_seed(0)
    estimator = CarvEstimator(schedule, EstimatorOptions(num_draws=8, proposal="uniform", stratify="render"))
    J = normal(2, 2).float()

    def residual(z_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:  # most of the noise is in t
        alpha, sigma = schedule.alpha(t).view(-1, 1, 1, 1), schedule.sigma(t).view(-1, 1, 1, 1)
        return (z_t - sigma * eps) / alpha * (t.view(-1, 1, 1, 1) / 300) + 0.1 * eps

    def renders(n: int) -> Tensor:
        return 1 + 0.3 * torch.randn(n, 2, 1, 1, generator=g)

    estimator.set_range(20, 600)
    z = renders(2000)
    a, b = (estimator.estimate_residual(z, residual, generator=g).grad.flatten(1) @ J for _ in range(2))
    v_in, s_out2 = float(half_square(a - b)) / len(z), cross_covariance(a, b)
    steps = estimator.estimate_residual(renders(4000), residual, generator=g).grad.flatten(1) @ J
    measured = total_variance(steps.view(2000, 2, 2).mean(1))  # R = 2 at K = 8
    assert (s_out2 + v_in) / 2 == pytest.approx(measured, rel=0.1)
    draws = estimator.estimate_residual(z, residual, generator=g).residual.flatten(2) @ J
    as_if_independent = sum(total_variance(by_render) for by_render in draws[:200]) / 200 / 8
    assert as_if_independent > 1.3 * v_in  # strata gained what single draws do not see


def test_gradients_are_of_every_parameter_and_keep_the_graph() -> None:
    theta, bias, unused = (normal(3, seed=i).requires_grad_() for i in range(3))
    latents = torch.stack([(theta * (r + 1)).sin() + bias**2 for r in range(2)])
    v = normal(2, 3, seed=9)
    first = flat_gradient(latents, [theta, bias, unused], v)
    assert torch.equal(first, flat_gradient(latents, [theta, bias, unused], v))
    (latents * v).sum().backward()
    expected = torch.cat([theta.grad, bias.grad, torch.zeros(3)])  # type: ignore[list-item]
    torch.testing.assert_close(first, expected)
    assert [tuple(g.shape) for g in gradients(theta.sum(), [theta, unused])] == [(3,), (3,)]


def test_the_gradients_of_the_draws_average_to_that_of_the_loss() -> None:
    g = torch.Generator().manual_seed(0)
    theta = torch.randn(3, generator=g).requires_grad_()
    latents = torch.stack([(theta * (r + 1)).sin() for r in range(2)]).view(2, 3, 1, 1)
    estimator = CarvEstimator(NoiseSchedule.scaled_linear(), EstimatorOptions(num_draws=4, proposal="weight"))
    out = estimator.estimate(latents, lambda z_t, t: z_t.sin(), generator=g)
    weighted = out.weights[..., None, None, None] * out.residual
    mean = torch.stack([flat_gradient(latents, [theta], weighted[:, k]) for k in range(4)]).mean(0) / 2
    out.loss.backward()
    torch.testing.assert_close(mean, theta.grad)


def test_ecm_and_re_by_hand() -> None:
    assert ecm(12.0, 2.0, 3.0, 4.0) == 2.0
    assert re(6.0, 3.0) == 2.0


@pytest.mark.parametrize("strata", [1, 2, 4])
def test_fine_strata_show_the_variance_of_coarse_ones(strata: int) -> None:
    S, repeats = 8, 3000
    u = (torch.arange(S) + torch.rand(repeats, 2, S, generator=torch.Generator().manual_seed(3)).double()) / S
    x = torch.stack([3 * u, 1 + u.square()], -1) + 0.1 * normal(repeats, 2, S, 2, seed=4)
    samples = torch.tensor([strata_variance(row, strata) for row in x])
    low = torch.arange(strata).double() / strata
    high = low + 1 / strata
    moment = {n: (high ** (n + 1) - low ** (n + 1)) / (n + 1) * strata for n in (1, 2, 4)}  # E u^n in each stratum
    spread = 9 * (moment[2] - moment[1] ** 2) + moment[4] - moment[2] ** 2 + 2 * 0.1**2
    error = float(samples.std()) / repeats**0.5
    assert abs(float(samples.mean()) - float(spread.mean()) / strata) < 4 * error
    assert strata_variance(x[0, :, :, 0], strata) == pytest.approx(strata_variance(x[0, :, :, :1], strata))


def test_strata_that_do_not_divide_are_named() -> None:
    for shape, strata in (((2, 8, 3), 3), ((2, 8), 0), ((3, 8), 2), ((2,), 1)):
        with pytest.raises(CarvError, match="do not divide into"):
            strata_variance(torch.ones(*shape), strata)
