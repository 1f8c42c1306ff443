"""The control variate on eps: unbiased while it learns, and what is linear in the noise gone."""

from __future__ import annotations

from typing import Any

import estimators as core_estimators
import pytest
import torch
from test_unbiased import COND, HIGH, LOW, REFERENCE, SHAPE, SINGLE, Z, eps_hat, make, single_eps_hat, theory
from torch import Tensor

from carv_3d.core.control import MOST, EpsControl
from carv_3d.core.designs import Design
from carv_3d.core.estimator import Draws
from carv_3d.errors import CarvError


@pytest.mark.parametrize(
    ("proposal", "stratify", "pairs", "K"),
    [("uniform", "none", False, 1), ("weight", "render", False, 4), ("adaptive", "render", True, 4)],
)
def test_unbiased_while_it_learns(proposal: str, stratify: str, pairs: bool, K: int) -> None:
    g, runs = torch.Generator().manual_seed(0), []
    for _ in range(40):  # from nothing, a few steps each: here a lag of no step would show
        estimator = make(proposal, stratify, pairs, K, control_variate=True)
        steps = [estimator.estimate(Z.expand(4, *SHAPE), eps_hat, generator=g).grad for _ in range(6)]
        runs.append(torch.stack(steps).mean((0, 1)).flatten())
    means = torch.stack(runs)
    error = means.std(0) / len(means) ** 0.5
    assert float(((means.mean(0) - REFERENCE) / error).abs().max()) < 4
    assert float(error.norm() / REFERENCE.norm()) < 0.1


def test_what_is_linear_in_the_noise_goes() -> None:
    # one component: f = m(t) + c(t) eps, so what is left is the variance of m, as with antithetic pairs
    g, estimates = torch.Generator().manual_seed(0), {}
    for control in (False, True):
        estimator = make("uniform", "none", False, 1, control_variate=control)
        for _ in range(40):
            estimator.estimate(Z.expand(200, *SHAPE), single_eps_hat, generator=g)
        grad = estimator.estimate(Z.expand(8000, *SHAPE), single_eps_hat, generator=g).grad.flatten(1)
        estimates[control] = float(grad.var(0).sum())
    assert estimates[False] == pytest.approx(theory(estimator.proposal, Design(stratify="none"), 1, 1), rel=0.1)
    assert estimates[True] == pytest.approx(
        theory(estimator.proposal, Design(stratify="none", antithetic=True), 1, 2), rel=0.1
    )
    assert estimates[True] < 0.7 * estimates[False]


def test_beta_by_hand_and_its_state() -> None:
    weights = torch.full((10,), 2.0, dtype=torch.float64)
    control = EpsControl(weights, bins=2, decay=0.5, prior=0.0)
    t, eps = torch.tensor([[1, 7]]), torch.tensor([[[1.0, 2.0], [3.0, 0.0]]]).double()
    f = 2.0 * torch.tensor([0.25, -1.0]).double()[None, :, None] * eps  # w beta eps
    control.update(t, f, eps, torch.tensor([[True, True]]))
    torch.testing.assert_close(control.noise(t, eps), f)
    control.update(t, 9 * f, eps, torch.tensor([[False, True]]))  # what was dropped teaches nothing
    expected = torch.stack([f[0, 0], f[0, 1] * (0.5 + 9) / 1.5])[None]
    torch.testing.assert_close(control.noise(t, eps), expected)
    again = EpsControl(weights, bins=2, prior=0.0)
    again.load_state_dict(control.state_dict())
    torch.testing.assert_close(again.noise(t, eps), expected)
    shy = EpsControl(weights, bins=2, prior=2.0)  # two draws of two numbers, in which nothing was seen
    shy.update(t, f, eps, torch.tensor([[True, True]]))
    share = (torch.tensor([5.0, 9.0]) / (torch.tensor([5.0, 9.0]) + 2 * 2)).double()
    torch.testing.assert_close(shy.noise(t, eps), f * share[None, :, None])
    with pytest.raises(CarvError, match="has 2 bins and this one 3"):
        EpsControl(weights, bins=3).load_state_dict(control.state_dict())


def test_explicit_draws_teach_nothing_and_its_state_is_the_estimators() -> None:
    g = torch.Generator().manual_seed(0)
    first, second = (make("weight", "render", False, 4, control_variate=True) for _ in range(2))
    first.estimate(Z, eps_hat, generator=g)
    before: Any = first.state_dict()["control"]["products"].clone()
    given = Draws(torch.tensor([[LOW, HIGH]]), torch.randn(1, 2, *SHAPE, generator=g, dtype=torch.float64))
    first.estimate(Z, eps_hat, draws=given)
    assert torch.equal(before, first.state_dict()["control"]["products"])
    second.load_state_dict(first.state_dict())
    same = [e.estimate(Z, eps_hat, draws=given).grad for e in (first, second)]
    assert torch.equal(same[0], same[1])
    assert len(COND) == len(SINGLE.means)


@pytest.mark.parametrize("huge", [1e30, 1e38])
def test_steps_that_went_wild_do_not_make_the_next_one_wild(huge: float) -> None:
    estimator = core_estimators.make(num_draws=2, control_variate=True)
    g = torch.Generator().manual_seed(0)

    def step(scale: float) -> float:
        latents = core_estimators.some_latents(8)
        out = estimator.estimate_residual(latents, lambda z_t, t, eps: scale * eps, generator=g)
        return float((out.residual + 0).abs().max())

    for _ in range(3):
        step(huge)
    assert 1.0 < step(1.0) < 5 * (1 + MOST)  # eps reaches about 4; without a bound it were 1e29
    for _ in range(300):
        step(1.0)
    assert step(1.0) < 3.0  # and what is usual is learnt again


def test_what_is_in_proportion_to_the_weight_goes_within_a_bin_too() -> None:
    estimator = core_estimators.make(control_variate=True, proposal="uniform", num_draws=8, min_step=0, max_step=59)
    w, g = estimator.schedule.weights("sds"), torch.Generator().manual_seed(0)

    def step() -> Tensor:
        latents = core_estimators.some_latents(32)
        out = estimator.estimate_residual(latents, lambda z_t, t, eps: w[t].view(-1, 1, 1, 1) * eps, generator=g)
        return out.residual.abs().amax(dim=(2, 3, 4)) / w[out.t]

    assert float(step().max()) > 2  # nothing is known yet
    for _ in range(20):
        step()
    assert float(step().max()) < 0.05  # w varies twofold within these bins
