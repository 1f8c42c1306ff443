"""Perp-Neg guidance (arXiv 2304.04968): negative prompts that only push at right angles to the text.

threestudio's own is wrong for more than one item (it tiles latents and t and interleaves the
negatives); here every row carries its own negatives, so any batch or order of rows gives the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.teachers.base import Teacher


def perpendicular(x: Tensor, y: Tensor) -> Tensor:
    """The part of x at right angles to y, row by row: x - (<x, y> / <y, y>) y, both (N, C, h, w)."""
    dims = tuple(range(1, x.dim()))
    along = (x * y).sum(dims, keepdim=True) / (y * y).sum(dims, keepdim=True).clamp_min(1e-6)
    return x - along * y


def perp_neg_eps_hat(
    teacher: Teacher,
    z_t: Tensor,
    t: Tensor,
    cond: Tensor,
    uncond: Tensor,
    negatives: Tensor,
    negative_weights: Tensor,
    guidance_scale: float,
) -> Tensor:
    """`uncond + s (e + sum_m w_m perp(e_m, e))`, with `e = text - uncond` and `e_m = negative_m - uncond`.

    z_t (N, C, h, w); t (N,); cond, uncond (N, L, D); negatives (N, M, L, D);
    negative_weights (N, M), as threestudio gives them: already negative. One batch of (2 + M) N rows.
    The scale is s itself, also where plain guidance would follow threestudio's convention.
    Returns (N, C, h, w). Raises CarvError if the negatives do not belong to these rows.
    """
    n = z_t.shape[0]
    if negatives.dim() != 4 or negatives.shape[0] != n or negative_weights.shape != negatives.shape[:2]:
        raise CarvError(
            f"Perp-Neg needs negatives (N, M, L, D) and weights (N, M) with N = {n} rows, "
            f"not {tuple(negatives.shape)} and {tuple(negative_weights.shape)}."
        )
    m = negatives.shape[1]
    text = torch.cat([cond, uncond, *negatives.unbind(1)])
    eps = teacher.eps_hat(z_t.repeat(m + 2, *[1] * (z_t.dim() - 1)), t.repeat(m + 2), text)
    eps_text, eps_uncond, *eps_negatives = eps.chunk(m + 2)
    e = eps_text - eps_uncond
    push = e
    for weight, eps_negative in zip(negative_weights.unbind(1), eps_negatives):
        weight = weight.to(e).view(-1, *[1] * (e.dim() - 1))
        push = push + weight * perpendicular(eps_negative - eps_uncond, e)
    return eps_uncond + guidance_scale * push
