"""The gradient of distribution matching, draw by draw (DMD, arXiv 2311.18828; DMD2, arXiv 2405.14867).

    g = 1/R sum_r J_r^T [ 1/K sum_k (p/q)(t_rk) f(z_r, t_rk, eps_rk) ]
    f: "dmd" or "kl", see `carv_3d.objectives`; guided is the teacher's prediction, trained the fake score's

The generator's pass is the upstream work: its z is made once, noised K times, and both scores are taken on all draws.
DMD's normalizer is nonlinear in a draw, so each draw has its own: one pooled over a sample's K draws would be another
objective.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor

from carv_3d.core.arguments import described, fits
from carv_3d.core.costs import CostMeter
from carv_3d.core.estimator import CarvEstimator, Draws, Estimate, EstimatorOptions
from carv_3d.errors import CarvError, shown
from carv_3d.guidance.cfg import classifier_free
from carv_3d.objectives.residuals import EpsHat, dmd
from carv_3d.objectives.table import OBJECTIVES, MatchingObjective

CHOICES = get_args(MatchingObjective)


class DistributionMatching:
    """The gradient that pulls the generator's distribution towards the teacher's.

    teacher: a `carv_3d.teachers.base.Teacher`; only `eps_hat` is called, without autograd.
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
        """guidance_scale: of the real score. meter: counts the seconds "denoise", the draws and the fake's NFE."""
        if objective not in CHOICES:
            raise CarvError(f"objective is {objective!r}; it must be one of {', '.join(CHOICES)}.")
        if not callable(eps_hat_fake):
            raise CarvError(f"eps_hat_fake is {described(eps_hat_fake)}; it must be a function (z_t, t, text).")
        if not fits(guidance_scale, float) or not math.isfinite(guidance_scale):
            raise CarvError(f"guidance_scale is {shown(guidance_scale)}; it must be a finite number.")
        self.teacher, self.eps_hat_fake = teacher, eps_hat_fake
        self.guidance_scale, self.objective, self.meter = guidance_scale, OBJECTIVES[objective], meter
        self.weights = self.objective.weights(teacher.schedule)
        self.estimator = CarvEstimator(teacher.schedule, options, meter=meter, weights=self.weights)

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
        The rest as of `CarvEstimator.estimate`. Raises CarvError as that, and for text that does not go with z.
        """
        given = [tuple(x.shape) if isinstance(x, Tensor) else described(x) for x in (text_emb, uncond)]
        fitting = isinstance(text_emb, Tensor) and isinstance(uncond, Tensor) and text_emb.dim() == 3
        if not fitting or uncond.shape not in (text_emb.shape, (1, *text_emb.shape[1:])):
            raise CarvError(f"text_emb is {given[0]} and uncond {given[1]}; they must be (R, L, D), uncond of 1 or R.")
        return self.estimator.estimate_residual(
            z, self.residual, (z.detach(), text_emb, uncond.expand_as(text_emb)), generator, draws=draws,
            num_draws=num_draws,
        )  # fmt: skip

    def residual(self, z_t: Tensor, t: Tensor, eps: Tensor, z: Tensor, text: Tensor, uncond: Tensor) -> Tensor:
        """The residual f of each sample, (N, C, h, w); both scores are taken on the same z_t."""
        real = classifier_free(self.teacher.eps_hat, z_t, t, (text,), (uncond,), self.guidance_scale)
        e = EpsHat(guided=real, trained=self.eps_hat_fake(z_t, t, text))
        if self.meter is not None:
            self.meter.count(nfe=len(z_t))
        w = self.weights[t].to(eps.dtype).view(-1, *[1] * (eps.dim() - 1))
        own = {"z": z} if self.objective.function is dmd else {}  # to the last bit; it could be had from z_t
        f: Tensor = self.objective.function(e, eps, z_t, t, self.teacher.schedule, w, **own)
        return f
