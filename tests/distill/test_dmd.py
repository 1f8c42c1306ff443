"""The gradient of distribution matching against the exact Gaussian teacher: formula, expectation, normalizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact import LAYOUTS, guided
from small import MEANS, SCHEDULE, SHAPE
from torch import Tensor

from carv_3d.core.costs import CostMeter
from carv_3d.core.estimator import EstimatorOptions
from carv_3d.distill.dmd import DistributionMatching
from carv_3d.errors import CarvError
from carv_3d.teachers.gaussian import GaussianTeacher

REAL = GaussianTeacher(MEANS.double(), std=0.4)
M = torch.tensor([0.2, 0.4, 1.1, -1.0], dtype=torch.float64).view(1, *SHAPE)  # the generator's: N(M, 0.7^2)
FAKE = GaussianTeacher(M, std=0.7)
Z = torch.tensor([0.5, -1.0, 0.8, 0.1], dtype=torch.float64).view(1, *SHAPE)
SCALE, LOW, HIGH = 3.0, 20, 980
TEXT, UNCOND = REAL.text_embeddings(["0"]), REAL.text_embeddings([""])


def fake_eps_hat(z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
    return FAKE.eps_hat(z_t, t, torch.zeros(len(z_t), 1, 1))


def matching(objective: str, meter: CostMeter | None = None, **options: Any) -> DistributionMatching:
    chosen = {"proposal": "uniform", "weighting": "uniform", "min_step": LOW, "max_step": HIGH, "max_batch": 100_000}
    return DistributionMatching(REAL, fake_eps_hat, EstimatorOptions(**{**chosen, **options}), SCALE, objective, meter)


def repeated(dmd: DistributionMatching, n: int, seed: int) -> Tensor:
    """Independent repeats of the latent gradient, (about n, D); one sample of a step of three where strata lie over
    samples."""
    g = torch.Generator().manual_seed(seed)

    def step(R: int) -> Tensor:
        return dmd.estimate(Z.expand(R, *SHAPE), TEXT.expand(R, 1, 2), UNCOND, g).grad.flatten(1)

    if dmd.estimator.proposal.adapts:
        for _ in range(10):  # something to adapt to
            step(32)
    design, K = dmd.estimator.design, dmd.estimator.options.num_draws
    if design.stratify == "none" or (design.stratify == "render" and design.group_size < K):
        return step(n)
    return torch.stack([step(3)[1] for _ in range(n // 10)])


def exact_kl() -> Tensor:
    """E[alpha_t (s_fake - s_real)] over t and eps: closed form for one Gaussian, quadrature for the guided mixture."""
    t = torch.arange(LOW, HIGH + 1)
    n = len(t)
    z = Z.expand(n, *SHAPE)
    text, null = (REAL.expected_eps_hat(z, t, e.expand(n, 1, 2)) for e in (TEXT, UNCOND))
    alpha, sigma = (x.double().view(-1, 1, 1, 1) for x in (SCHEDULE.alpha(t), SCHEDULE.sigma(t)))
    s_real = -(null + SCALE * (text - null)) / sigma
    s_fake = -alpha * (Z - M) / ((alpha * 0.7) ** 2 + sigma**2)
    return (alpha * (s_fake - s_real)).mean(0).flatten()


@pytest.mark.parametrize("proposal", ["uniform", "weight", "adaptive"])
@pytest.mark.parametrize(("stratify", "pairs", "K"), LAYOUTS)
def test_unbiased_for_the_closed_form(proposal: str, stratify: str, pairs: bool, K: int) -> None:
    expected = exact_kl()
    dmd = matching("kl", num_draws=K, proposal=proposal, stratify=stratify, antithetic=pairs)
    grad = repeated(dmd, 1600, seed=K)
    error = grad.std(0) / len(grad) ** 0.5
    assert float(((grad.mean(0) - expected) / error).abs().max()) < 4
    assert float(error.norm() / expected.norm()) < 0.15  # narrow enough to see a bias


def test_the_normalizer_of_each_draw_keeps_the_objective_and_a_pooled_one_does_not() -> None:
    n, K = 24_000, 4
    single = repeated(matching("dmd", num_draws=1, stratify="none"), n, seed=0)
    four = repeated(matching("dmd", num_draws=K, stratify="none"), n // K, seed=1)

    def apart(gradient: Tensor) -> float:
        error = (gradient.var(0) / len(gradient) + single.var(0) / len(single)).sqrt()
        return float(((gradient.mean(0) - single.mean(0)) / error).abs().max())

    assert apart(four) < 4

    def parts(z_t: Tensor, t: Tensor, eps: Tensor, z: Tensor, *text: Tensor) -> tuple[Tensor, Tensor]:
        eps_real, eps_fake = guided(REAL, z_t, t, *text, SCALE), fake_eps_hat(z_t, t, text[0])
        z_real, z_fake = (SCHEDULE.z_from("epsilon", z_t, e, t) for e in (eps_real, eps_fake))
        return z_fake - z_real, (z - z_real).abs().flatten(1).mean(1)

    R = n // K
    z, text, none = Z.expand(R, *SHAPE), TEXT.expand(R, 1, 2), UNCOND.expand(R, 1, 2)
    estimator = matching("dmd", num_draws=K, stratify="none").estimator
    pooled = estimator.estimate_residual(z, parts, (z, text, none), torch.Generator().manual_seed(2))
    assert pooled.extra is not None
    estimate = pooled.grad.flatten(1) / pooled.extra.mean(1)[:, None]
    assert apart(estimate) > 6


def test_the_nfe_that_is_counted() -> None:
    meter = CostMeter()
    dmd = matching("dmd", meter, num_draws=8)
    z = Z.expand(3, *SHAPE).clone().requires_grad_()
    out = dmd.estimate(z, TEXT.expand(3, 1, 2), UNCOND, torch.Generator().manual_seed(0))
    assert meter.counts == {"nfe": 24, "renders": 0, "draws": 24}  # the teacher's are TimedTeacher's to count
    out.loss.backward()
    torch.testing.assert_close(z.grad, out.grad / 3)


def test_an_objective_that_does_not_exist_is_refused() -> None:
    with pytest.raises(CarvError, match="objective is 'x'; it must be one of dmd, kl"):
        matching("x")


def test_what_does_not_go_with_the_samples_is_named() -> None:
    wrong: Any = "7"
    for scale in (wrong, float("nan"), [1, 2]):
        with pytest.raises(CarvError, match=r"guidance_scale is .*; it must be a finite number"):
            DistributionMatching(REAL, fake_eps_hat, EstimatorOptions(), scale)
    with pytest.raises(CarvError, match="eps_hat_fake is None; it must be a function"):
        DistributionMatching(REAL, None, EstimatorOptions())  # type: ignore[arg-type]
    z, three = Z.repeat(2, 1, 1, 1), UNCOND.repeat(3, 1, 1)
    for text, uncond in ((TEXT.repeat(2, 1, 1), three), (None, UNCOND), (TEXT.repeat(2, 1, 1), UNCOND[..., :1])):
        with pytest.raises(CarvError, match=r"text_emb is .* and uncond .*; they must be \(R, L, D\), uncond of"):
            matching("dmd").estimate(z, text, uncond)  # type: ignore[arg-type]
