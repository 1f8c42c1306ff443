"""Score distillation in one call, for a loop of one's own."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from carv_3d.core.estimator import CarvEstimator, Cond, EstimatorOptions
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError

_estimators: weakref.WeakKeyDictionary[NoiseSchedule, dict[EstimatorOptions, CarvEstimator]]
_estimators = weakref.WeakKeyDictionary()


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

    options: of EstimatorOptions. Keep one `schedule`: the tables are cached with it. The proposal "adaptive"
    learns from step to step and needs a CarvEstimator of its own; here it raises CarvError.
    """
    chosen = EstimatorOptions(**options)
    if chosen.proposal == "adaptive":
        raise CarvError("sds_loss keeps no state: for the adaptive proposal make a CarvEstimator, and keep that.")
    cached = _estimators.setdefault(schedule, {})
    key = replace(chosen, min_step=0, max_step=0)  # an annealed range moves one estimator's
    if key not in cached:
        # through a copy: the cache must not keep the schedule, its own key, alive
        cached[key] = CarvEstimator(NoiseSchedule(schedule.alphas_cumprod), chosen)
    cached[key].set_range(chosen.min_step, chosen.max_step)
    return cached[key].estimate(latents, eps_hat, cond, generator).loss
