"""What the estimator's tests are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from carv_3d.core.estimator import CarvEstimator, EstimatorOptions
from carv_3d.core.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.scaled_linear()
SHAPE = (4, 3, 3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_latents(R: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(R, *SHAPE, generator=seeded(seed)).requires_grad_()


def model(z_t: Tensor, t: Tensor, *cond: Tensor) -> Tensor:
    """A sample of the output depends on its own sample of the input alone, bit for bit."""
    out = torch.tanh(z_t * 0.7) + 0.1 * z_t.roll(1, dims=-1) + t.view(-1, 1, 1, 1) / 1000
    for c in cond:
        out = out + c.view(-1, 1, 1, 1)
    return out


def make(**options: Any) -> CarvEstimator:
    return CarvEstimator(SCHEDULE, EstimatorOptions(**options))
