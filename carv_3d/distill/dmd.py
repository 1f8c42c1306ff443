"""The gradient of distribution matching, draw by draw (DMD, arXiv 2311.18828, eq. 7 and 8; DMD2, arXiv 2405.14867).

    g = 1/R sum_r J_r^T [ 1/K sum_k (p/q)(t_rk) f(z_r, t_rk, eps_rk) ]
    f = w alpha_t (s_fake(z_t, t) - s_real(z_t, t)),       s = -(z_t - alpha_t z_hat) / sigma_t^2

The generator's pass is the upstream work: its z is made once, noised K times, and both scores are taken on all draws.
With DMD's weight w = sigma_t^2 / (alpha_t^2 mean|z - z_real|) this is f = (z_fake - z_real) / mean|z - z_real|, which
is what DMD's and DMD2's code computes (their eq. 8 has one alpha_t more). The mean is over the elements of one latent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from carv_3d.core.costs import CostMeter
from carv_3d.core.estimator import CarvEstimator, Draws, Estimate, EstimatorOptions
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError

OBJECTIVES = ("dmd", "kl")


def dmd_residual(
    z: Tensor, z_t: Tensor, t: Tensor, eps_real: Tensor, eps_fake: Tensor, schedule: NoiseSchedule, objective: str
) -> Tensor:
    """f of each row, (N, C, h, w); z, z_t, eps_real, eps_fake (N, C, h, w), t (N,).

    objective: "dmd", with DMD's normaliser. It is nonlinear in a draw, so each draw has its own: one that was pooled
        over the K draws of a sample would be another objective. "kl", w = 1: the gradient in z_t of the reverse KL
        divergence between the two diffused distributions, through z_t = alpha_t z + sigma_t eps.
    Raises CarvError for any other name.
    """
    if objective == "kl":
        alpha, sigma = (x.to(z_t).view(-1, *[1] * (z_t.dim() - 1)) for x in (schedule.alpha(t), schedule.sigma(t)))
        return alpha / sigma * (eps_real - eps_fake)
    if objective != "dmd":
        raise CarvError(f"objective is {objective!r}; it must be one of {', '.join(OBJECTIVES)}.")
    z_real, z_fake = (schedule.z_from_eps(z_t, eps, t) for eps in (eps_real, eps_fake))
    return (z_fake - z_real) / (z - z_real).abs().flatten(1).mean(1).view(-1, *[1] * (z.dim() - 1))


class DistributionMatching:
    """The gradient that pulls the generator's distribution towards the teacher's.

    teacher: a `carv_3d.teachers.base.Teacher`; only `eps_hat_cfg` is called, without autograd.
    eps_hat_fake: (z_t (N, C, h, w), t (N,), text (N, L, D)) -> (N, C, h, w), the fake score's, without guidance.
    """

    def __init__(
        self,
        teacher: Any,
        eps_hat_fake: Callable[[Tensor, Tensor, Tensor], Tensor],
        options: EstimatorOptions,
        guidance_scale: float = 1.0,
        objective: str = "dmd",
        meter: CostMeter | None = None,
    ) -> None:
        """guidance_scale: of the real score. meter: told the seconds "denoise", the draws and the fake's UNet rows."""
        if objective not in OBJECTIVES:
            raise CarvError(f"objective is {objective!r}; it must be one of {', '.join(OBJECTIVES)}.")
        self.teacher, self.eps_hat_fake = teacher, eps_hat_fake
        self.guidance_scale, self.objective, self.meter = guidance_scale, objective, meter
        schedule = teacher.schedule
        # what multiplies eps_real - eps_fake: alpha / sigma; DMD's normaliser takes that out of it, near enough
        weights = schedule.alpha(torch.arange(schedule.num_train_timesteps, device=schedule.device))
        weights = weights / schedule.sigma(torch.arange(len(weights), device=schedule.device))
        self.estimator = CarvEstimator(schedule, options, meter, weights if objective == "kl" else None)

    def estimate(
        self,
        z: Tensor,
        text_emb: Tensor,
        uncond: Tensor,
        generator: torch.Generator | None = None,
        draws: Draws | None = None,
        num_draws: int | None = None,
    ) -> Estimate:
        """One step's estimate; `Estimate.loss` has the gradient grad / R in z and is differentiable in nothing else.

        z: (R, C, h, w), from the generator, with autograd. text_emb, uncond: (R, L, D) and (1, L, D) or (R, L, D).
        The rest as of `CarvEstimator.estimate`.
        """
        return self.estimator.estimate_residual(
            z, self.residual, (z.detach(), text_emb, uncond.expand_as(text_emb)), generator, draws, num_draws
        )

    def residual(self, z_t: Tensor, t: Tensor, eps: Tensor, z: Tensor, text: Tensor, uncond: Tensor) -> Tensor:
        """f of each row, both scores taken on the same z_t; see `dmd_residual`."""
        eps_real = self.teacher.eps_hat_cfg(z_t, t, text, uncond, self.guidance_scale)
        eps_fake = self.eps_hat_fake(z_t, t, text)
        if self.meter is not None:
            self.meter.count(nfe=len(z_t))
        return dmd_residual(z, z_t, t, eps_real, eps_fake, self.teacher.schedule, self.objective)
