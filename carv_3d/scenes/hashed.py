"""Trilinear interpolation of a grid whose nodes share the rows of a table through a spatial hash.

Instant NGP, arXiv 2201.05989, equation 4: node (i, j, k) is in row (i ^ 2654435761 j ^ 805459861 k) mod T.

`benchmarks/interpolation.py` compares the loops compiled by numba with torch's `embedding_bag`, whose backward pass
took most of a render's time on a CPU. They are used where those of `trilinear` are, and `embedding_bag` elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from carv_3d.scenes.trilinear import compiled, first_order, loops

__all__ = ["PRIMES", "interpolate_hashed", "interpolate_hashed_reference"]

PRIMES = (1, 2654435761, 805459861)


class _Hashed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, x: Tensor, res: int) -> Tensor:
        x = x.detach().contiguous()
        out = torch.empty(x.shape[0], table.shape[1])
        loops().gather_hashed(table.detach().contiguous().numpy(), x.numpy(), out.numpy(), res, *PRIMES[1:])
        ctx.save_for_backward(x)
        ctx.shape, ctx.res = table.shape, res
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        grad_table = torch.zeros(ctx.shape)
        loops().scatter_hashed(
            grad_table.numpy(), x.numpy(), grad_outputs[0].contiguous().numpy(), ctx.res, *PRIMES[1:]
        )
        return grad_table, None, None


def interpolate_hashed_reference(table: Tensor, x: Tensor, res: int) -> Tensor:
    """`interpolate_hashed` by `F.embedding_bag`: on every device."""
    u = ((x + 1) * 0.5 * (res - 1)).clamp(0, res - 1)
    low = u.floor().clamp(max=res - 2)
    w = u - low
    corners = torch.cartesian_prod(*[torch.arange(2, device=x.device)] * 3)  # (8, 3)
    index = low.long()[:, None] + corners  # (N, 8, 3)
    weight = torch.where(corners == 1, w[:, None], 1 - w[:, None]).prod(dim=-1)
    a, b, c = (index[..., axis] * prime for axis, prime in enumerate(PRIMES))
    rows = (a ^ b ^ c) % len(table)
    return F.embedding_bag(rows, table, per_sample_weights=weight, mode="sum")


def interpolate_hashed(table: Tensor, x: Tensor, res: int) -> Tensor:
    """Values (N, C) of a hashed grid.

    Differentiable in `table`, and in `x` where `x` requires a gradient.

    Args:
        table: (T, C), T a power of two.
        x: (N, 3) points of the cube [-1, 1]^3, whose faces are the outermost nodes; others take the border's value.
        res: nodes along each axis.
    """
    if compiled(table, x) and res > 1:
        out: Tensor = _Hashed.apply(table, x, res)
        return out
    return interpolate_hashed_reference(table, x, res)
