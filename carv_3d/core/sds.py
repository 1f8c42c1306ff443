"""Score distillation in one call, for a loop of one's own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from carv_3d.core.arguments import checked
from carv_3d.core.checks import Cond, check_call, check_gradient, check_setup
from carv_3d.core.estimator import CarvEstimator, EstimatorOptions
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError

MOST_KEPT = 8  # estimators of a schedule in a thread: one for each weighting, proposal and design in use


@checked
def sds_loss(
    latents: Tensor,
    eps_hat: Callable[..., Tensor],
    schedule: NoiseSchedule,
    *,
    cond: Cond = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    """The score distillation loss of one step, a scalar to call `backward` on.

        loss = sds_loss(encode(render(camera)), eps_hat, schedule, num_draws=8)
        loss.backward()

    Args:
        latents: (R, C, h, w), or (R, ...) of any shape, with autograd: the loss is differentiable in them alone.
        eps_hat: the frozen model, eps_hat(z_t (N, ...), t (N,), *samples of cond) -> (N, ...), guidance inside; it
            runs without autograd.
        schedule: the model's; keep one from step to step.
        cond: a tensor, or tensors, of R samples that go with the renders (text embeddings).
        generator: of every random number, on any device; torch's global one if None.
        **options: of `EstimatorOptions`: num_draws, proposal, stratify, antithetic, weighting, min_step, max_step,
            grad_clip, max_batch, ... They may change from call to call.

    Raises:
        CarvError: something that does not fit; latents without gradient (`CarvEstimator.estimate(...).grad` needs
            none); what learns from step to step, the proposal "adaptive" and control_variate; many calls in a row
            without a finite draw.
    """
    o = EstimatorOptions(**options)
    if o.proposal == "adaptive" or o.control_variate:
        what = "the control variate" if o.control_variate else "the adaptive proposal"
        raise CarvError(f"sds_loss learns nothing from step to step: for {what} make a CarvEstimator, and keep that.")
    check_setup(schedule, o, EstimatorOptions)
    check_call(eps_hat, latents, generator)
    instead = "take CarvEstimator(schedule).estimate(latents, eps_hat).grad for the gradient alone"
    check_gradient("latents need", latents, f"encode outside of torch.no_grad(), or {instead}")
    estimator = _kept(schedule, o)
    estimator.set_range(*o.timestep_range(schedule.num_train_timesteps))
    return estimator.estimate(latents, eps_hat, cond, generator, num_draws=o.K, grad_clip=o.grad_clip).loss


def _kept(schedule: NoiseSchedule, o: EstimatorOptions) -> CarvEstimator:
    """The schedule's own estimator for these options, those apart that are given at every call.

    Each thread has its own: between the range that one sets and its draws another may set another range.
    """
    given: dict[str, Any] = {"num_draws": 2, "grad_clip": None, "min_step": None, "max_step": None}
    options, threads = replace(o, **given), schedule.estimators
    kept = threads.setdefault(threading.get_ident(), {})
    if options not in kept:
        for ended in set(threads) - {t.ident for t in threading.enumerate()} - {threading.get_ident()}:
            threads.pop(ended, None)
        while len(kept) >= MOST_KEPT:  # options that change at every call must not pile up
            kept.pop(next(iter(kept)))
        kept[options] = CarvEstimator(schedule, options)
    return kept[options]
