"""Every proposal, design and K against the exact Gaussian teacher: the expectation and the variance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact import LAYOUTS, guided, sds_gradient
from torch import Tensor

from carv_3d.core.designs import Design
from carv_3d.core.estimator import CarvEstimator, EstimatorOptions
from carv_3d.core.proposals import TimestepProposal
from carv_3d.teachers.gaussian import GaussianTeacher

SHAPE = (1, 2, 2)
MEANS = torch.tensor([[1.0, -0.5, 0.3, 0.8], [-0.7, 0.9, -0.2, 0.1], [0.2, 0.4, 1.1, -1.0]]).view(3, *SHAPE)
MIXTURE = GaussianTeacher(MEANS.double(), std=0.4)
SINGLE = GaussianTeacher(MEANS[:1].double(), std=0.4)
Z = torch.tensor([0.5, -1.0, 0.8, 0.1], dtype=torch.float64).view(1, *SHAPE)
SCALE = 4.0
COND, UNCOND = MIXTURE.text_embeddings(["0"]), MIXTURE.text_embeddings([""])
LOW, HIGH = 20, 980


def eps_hat(z_t: Tensor, t: Tensor) -> Tensor:
    n = len(z_t)
    return guided(MIXTURE, z_t, t, COND.expand(n, 1, 3), UNCOND.expand(n, 1, 3), SCALE)


def single_eps_hat(z_t: Tensor, t: Tensor) -> Tensor:
    return SINGLE.eps_hat(z_t, t, torch.zeros(len(z_t), 1, 1))


def make(proposal: str, stratify: str, pairs: bool, K: int, **options: Any) -> CarvEstimator:
    return CarvEstimator(
        MIXTURE.schedule,
        EstimatorOptions(
            num_draws=K,
            proposal=proposal,
            stratify=stratify,
            antithetic=pairs,
            min_step=LOW,
            max_step=HIGH,
            max_batch=100_000,
            **options,
        ),
    )


def repeated(estimator: CarvEstimator, model: Any, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Independent repeats, n at most: of grad (n, D) and of the mean weight (n,).

    Where strata lie over the renders, a repeat is one render of a step of three: that the mean over renders
    is right would not show that each is.
    """
    g = torch.Generator().manual_seed(seed)
    if estimator.proposal.adapts:
        for _ in range(15):  # something to adapt to
            estimator.estimate(Z.expand(32, *SHAPE), model, generator=g)
    design, K = estimator.design, estimator.options.num_draws
    if design.stratify == "none" or (design.stratify == "render" and design.group_size < K):
        out = estimator.estimate(Z.expand(n, *SHAPE), model, generator=g)
        return out.grad.flatten(1), out.weights.mean(1)
    steps = [estimator.estimate(Z.expand(3, *SHAPE), model, generator=g) for _ in range(n // 10)]
    return torch.stack([s.grad[1].flatten() for s in steps]), torch.stack([s.weights[1].mean() for s in steps])


REFERENCE = sds_gradient(MIXTURE, Z, COND, UNCOND, SCALE, "sds", LOW, HIGH).flatten()


@pytest.mark.parametrize("proposal", ["uniform", "weight", "adaptive"])
@pytest.mark.parametrize(("stratify", "pairs", "K"), LAYOUTS)
def test_unbiased(proposal: str, stratify: str, pairs: bool, K: int) -> None:
    n = 2400
    grad, weights = repeated(make(proposal, stratify, pairs, K), eps_hat, n, seed=K)
    standard_error = grad.std(0) / len(grad) ** 0.5
    assert float(((grad.mean(0) - REFERENCE) / standard_error).abs().max()) < 4
    # the test would see a bias of a tenth: it is not so wide that anything passes
    assert float(standard_error.norm() / REFERENCE.norm()) < 0.1
    if proposal == "uniform":
        assert torch.equal(weights, torch.ones_like(weights))


@pytest.mark.parametrize("proposal", ["weight", "adaptive"])
@pytest.mark.parametrize(("stratify", "pairs", "K"), LAYOUTS)
def test_weights_average_to_one(proposal: str, stratify: str, pairs: bool, K: int) -> None:
    estimator = make(proposal, stratify, pairs, K)
    g, design = torch.Generator().manual_seed(K), estimator.design
    n, groups = 800, K // design.group_size
    if stratify == "none" or (stratify == "render" and groups > 1):
        u = design.draw_u(n, K, g)
    else:  # one render of a step of three
        u = torch.stack([design.draw_u(3, K, g)[1] for _ in range(n)])
    _, weights = estimator.proposal.sample(u)
    # the standard error is the exact one: p/q has rare large values, which a sample may miss
    ones = torch.ones(HIGH - LOW + 1, 1, dtype=torch.float64)
    variance = variance_in_strata(estimator.proposal, 1 if stratify == "none" else groups, ones, 0 * ones[:, 0])
    assert abs(float(weights.mean()) - 1) < 4 * (variance / groups / n) ** 0.5


@pytest.mark.parametrize("weighting", ["uniform", "fantasia3d"])
def test_unbiased_for_the_other_weightings(weighting: str) -> None:
    grad, _ = repeated(make("weight", "render", True, 4, weighting=weighting), eps_hat, 2400, seed=0)
    expected = sds_gradient(MIXTURE, Z, COND, UNCOND, SCALE, weighting, LOW, HIGH).flatten()
    assert float(((grad.mean(0) - expected) / (grad.std(0) / 2400**0.5)).abs().max()) < 4


def test_adaptive_stays_unbiased_while_it_learns() -> None:
    g = torch.Generator().manual_seed(0)
    runs = []
    for _ in range(60):  # from nothing, a few steps each: here a lag of no step would show
        estimator = make("adaptive", "none", False, 2, adaptive_decay=0.3)
        steps = [estimator.estimate(Z.expand(4, *SHAPE), eps_hat, generator=g).grad for _ in range(6)]
        runs.append(torch.stack(steps).mean((0, 1)).flatten())
    means = torch.stack(runs)
    assert float(((means.mean(0) - REFERENCE) / (means.std(0) / 60**0.5)).abs().max()) < 4


def test_a_proposal_fitted_to_pairs_is_better_for_pairs_than_one_fitted_to_single_draws() -> None:
    g, variances = torch.Generator().manual_seed(0), {}
    for pairs in (True, False):  # both learn from as many draws, each from what it draws
        estimator = make("adaptive", "render", pairs, 8, adaptive_decay=1.0)
        for _ in range(15):
            estimator.estimate(Z.expand(64, *SHAPE), single_eps_hat, generator=g)
        variances[pairs] = theory(estimator.proposal, Design(stratify="render", antithetic=True), 1, 8)
    assert variances[True] < 0.95 * variances[False]


def test_cameras_in_a_fixed_order_are_no_bias() -> None:
    # render r always looks from its own side (another z): fixed strata would tie timesteps to sides
    z = torch.cat([Z, -Z, 2 * Z])
    expected = sds_gradient(SINGLE, z, torch.zeros(3, 1, 1).double(), low=LOW, high=HIGH)
    estimator, g = make("uniform", "global", False, 1), torch.Generator().manual_seed(0)
    steps = torch.stack([estimator.estimate(z, single_eps_hat, generator=g).grad for _ in range(800)])
    error = steps.std(0) / 800**0.5
    assert float(((steps.mean(0) - expected) / error).abs().max()) < 4


def variance_in_strata(proposal: TimestepProposal, S: int, m: Tensor, c2: Tensor) -> float:
    """Exact variance of (p/q) (m + noise of variance c2), m (T, d), c2 (T,), within S strata, on average."""
    edges = torch.arange(S + 1, dtype=torch.float64)[:, None] / S
    cdf = torch.cat([torch.zeros(1).double(), proposal.q.cumsum(0)])
    low, high = torch.maximum(edges[:-1], cdf[None, :-1]), torch.minimum(edges[1:], cdf[None, 1:])
    share = (high - low).clamp(min=0) * S  # (S, T), of each timestep in each stratum
    rho = 1 / (len(proposal.q) * proposal.q)
    second = share @ (rho**2 * (m.square().sum(1) + c2))
    first = share @ (rho[:, None] * m)
    return float((second - first.square().sum(1)).mean())


def theory(proposal: TimestepProposal, design: Design, R: int, K: int) -> float:
    """Exact tr Var of the mean of `grad` over R equal renders, for the one-component teacher.

    There eps_hat is linear in eps: f = m(t) + c(t) eps, m = w sigma alpha (z - mu) / v and
    c = w (sigma^2/v - 1), and a pair's c cancels.
    """
    t = torch.arange(LOW, HIGH + 1)
    schedule = SINGLE.schedule
    alpha, sigma, w = (x.double() for x in (schedule.alpha(t), schedule.sigma(t), schedule.w(t, "sds")))
    v = (alpha * SINGLE.std) ** 2 + sigma**2
    m = (w * sigma * alpha / v)[:, None] * (Z.flatten() - SINGLE.means.flatten())
    c2 = (w * (sigma**2 / v - 1)) ** 2 * Z.numel() * (0 if design.antithetic else 1)
    groups = K // design.group_size
    over_renders = design.stratify == "global" or (design.stratify == "render" and groups == 1)
    S = {"none": 1}.get(design.stratify, groups * R if over_renders else groups)
    return variance_in_strata(proposal, S, m, c2) / (groups * R)


@pytest.mark.parametrize("proposal", ["uniform", "weight", "adaptive"])
@pytest.mark.parametrize(("stratify", "pairs", "K"), [x for x in LAYOUTS if x[2] in (1, 2, 8)])
def test_variance_is_what_theory_says(proposal: str, stratify: str, pairs: bool, K: int) -> None:
    estimator = make(proposal, stratify, pairs, K)
    g = torch.Generator().manual_seed(K)
    if estimator.proposal.adapts:
        for _ in range(15):
            estimator.estimate(Z.expand(32, *SHAPE), single_eps_hat, generator=g)
    per_render = stratify == "none" or (stratify == "render" and estimator.design.group_size < K)
    R = 1 if per_render else 3
    expected = theory(estimator.proposal, estimator.design, R, K)
    if per_render:
        grad = estimator.estimate(Z.expand(6000, *SHAPE), single_eps_hat, generator=g).grad.flatten(1)
    else:
        # frozen: the theory is of one q
        estimator.proposal.update = lambda t, value: None  # type: ignore[method-assign]
        steps = [estimator.estimate(Z.expand(R, *SHAPE), single_eps_hat, generator=g) for _ in range(200)]
        grad = torch.stack([s.grad.mean(0).flatten() for s in steps])
    squares = (grad - grad.mean(0)).square().sum(1)
    n = len(grad)
    got, error = float(squares.sum() / (n - 1)), float(squares.std() / n**0.5)
    assert abs(got - expected) < 4 * error
    assert error < 0.2 * expected


@pytest.mark.parametrize("proposal", ["uniform", "weight"])
def test_theory_orders_the_designs(proposal: str) -> None:
    # 1/K for independent draws; strata never worse than none; more strata never worse than fewer
    def var(stratify: str, pairs: bool, K: int, R: int = 2) -> float:
        estimator = make(proposal, stratify, pairs, K)
        return theory(estimator.proposal, estimator.design, R, K)

    single = var("none", False, 1)
    for K in (1, 2, 4, 8):
        assert var("none", False, K) == pytest.approx(single / K)
        assert var("global", False, K) <= var("render", False, K) * (1 + 1e-9)
        assert var("render", False, K) <= var("none", False, K) * (1 + 1e-9)
    assert var("render", False, 8) < 0.9 * var("none", False, 8)
    assert var("render", True, 8) < var("render", False, 8)  # here: eps_hat is linear in eps
