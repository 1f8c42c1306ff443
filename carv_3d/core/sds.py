"""Score distillation in one call, for a loop of one's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from carv_3d.core.estimator import CarvEstimator, Cond, EstimatorOptions
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError

MOST_KEPT = 8  # estimators of a schedule: one for each weighting, proposal and design in use


def sds_loss(
    latents: Tensor,
    eps_hat: Callable[..., Tensor],
    schedule: NoiseSchedule,
    cond: Cond = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    """The loss of one step in one call, for a loop of one's own; see CarvEstimator.estimate.

        loss = sds_loss(encode(render(camera)), eps_hat, schedule, num_draws=8)
        loss.backward()

    options: of EstimatorOptions, which may change from call to call. What learns from step to step, the proposal
    "adaptive" and `control_variate`, needs a CarvEstimator of its own; here it raises CarvError.
    """
    o = EstimatorOptions(**options)
    if o.proposal == "adaptive" or o.control_variate:
        what = "the control variate" if o.control_variate else "the adaptive proposal"
        raise CarvError(f"sds_loss learns nothing from step to step: for {what} make a CarvEstimator, and keep that.")
    estimator = _kept(schedule, o)
    estimator.set_range(o.min_step, o.max_step)
    return estimator.estimate(latents, eps_hat, cond, generator, num_draws=o.K, grad_clip=o.grad_clip).loss


def _kept(schedule: NoiseSchedule, o: EstimatorOptions) -> CarvEstimator:
    """The schedule's own estimator for these options, those apart that are given at every call."""
    key = replace(o, num_draws=2, grad_clip=None, min_step=0, max_step=0)
    kept = schedule.estimators
    if key not in kept:
        while len(kept) >= MOST_KEPT:  # options that change at every call must not pile up
            kept.pop(next(iter(kept)))
        kept[key] = CarvEstimator(schedule, key)
    return kept[key]
