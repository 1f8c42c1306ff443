"""From draws to one gradient per render, and from that to a loss with exactly this gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def finite_draws(f: Tensor, clip: float | None = None) -> tuple[Tensor, Tensor]:
    """A draw that is not finite counts as 0; `clip` limits each draw elementwise, before p/q and the mean.

    Returns:
        f (R, K, ...) as used, and which draws are finite (R, K).
    """
    finite = torch.isfinite(f.flatten(2)).all(-1)
    f = torch.where(per_draw(finite, f), f, torch.zeros_like(f))
    return (f if clip is None else f.clamp(-clip, clip)), finite


def reduce_draws(f: Tensor, weights: Tensor, clip: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted mean over draws.

    Args:
        f: (R, K, ...).
        weights: p/q, (R, K).
        clip: see `finite_draws`.

    Returns:
        f as used, finite (R, K), and mean_k (p/q) f (R, ...).
    """
    f, finite = finite_draws(f, clip)
    return f, finite, (per_draw(weights, f) * f).mean(1)


def surrogate_loss(latents: Tensor, grad: Tensor) -> Tensor:
    """A scalar of value |grad|^2 / 2R whose gradient w.r.t. latents (R, ...) is grad / R to the last bit.

    <latents, grad / R> with the value exchanged. threestudio's 0.5 |z - (z - g).detach()|^2 / R has the same
    value, but its gradient is g after a rounding to the grid of z, which eats the bits of a small g.
    """
    grad = grad.detach()
    R = latents.shape[0]
    inner = (latents * (grad / R)).sum()
    return inner - inner.detach() + 0.5 * grad.square().sum() / R


def per_draw(values: Tensor, like: Tensor) -> Tensor:
    """(R, K) -> (R, K, 1, ...), to go with (R, K, ...)."""
    return values.view(*values.shape, *[1] * (like.dim() - values.dim()))
