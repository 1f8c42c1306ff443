"""Cameras spread evenly over the renders of a step and over the steps of a run.

    u_n = frac(shift + n alpha),    alpha_j = phi^-(j+1),    phi^(d+1) = phi + 1,    n = step · B + place in the batch

This is Roberts' generalization of the golden ratio to d dimensions. The shift is uniform and drawn once for a run. So
every u_n by itself is uniform: each camera has the distribution of random ones, and the objective stays. Any stretch of
the sequence covers the unit cube more evenly than independent numbers do, so the mean over renders and steps varies
less.
"""

from __future__ import annotations

import torch
from torch import Tensor


def low_discrepancy(step: int, batch_size: int, dims: int, seed: int) -> Tensor:
    """The step's stretch (B, dims) of the sequence, in [0, 1); its shift is drawn from `seed`, and no state is kept."""
    shift = torch.rand(dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    phi = 2.0
    for _ in range(60):
        phi = (1 + phi) ** (1 / (dims + 1))
    alpha = phi ** -torch.arange(1.0, dims + 1, dtype=torch.float64)
    n = step * batch_size + torch.arange(batch_size, dtype=torch.float64)
    return torch.remainder(shift + n[:, None] * alpha, 1.0)
