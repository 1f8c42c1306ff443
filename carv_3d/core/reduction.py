"""From draws to one gradient per render, and from that to a loss with exactly this gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def finite_draws(f: Tensor, clip: float | None = None) -> tuple[Tensor, Tensor]:
    """A draw that is not finite counts as 0.

    Args:
        f: (R, K, ...).
        clip: limits each draw elementwise, before p/q and the mean.

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

    Args:
        latents: (R, ...), with autograd.
        grad: (R, ...), taken without autograd.
    """
    grad = grad.detach()
    R = latents.shape[0]
    inner = (latents * (grad / R)).sum()
    return inner - inner.detach() + 0.5 * grad.square().sum() / R


def per_draw(values: Tensor, like: Tensor) -> Tensor:
    """(R, K) -> (R, K, 1, ...), to go with (R, K, ...)."""
    return values.view(*values.shape, *[1] * (like.dim() - values.dim()))


def draw_groups(x: Tensor, size: int) -> Tensor:
    """(R, K, ...) -> (R, K / size, size, ...)."""
    return x.unflatten(1, (x.shape[1] // size, size))


def draw_statistics(
    weighted: Tensor, weights: Tensor, finite: Tensor, grad: Tensor, group_size: int
) -> dict[str, float]:
    """nonfinite, ess, grad_norm and, where a render has two groups or more, snr, as `Estimate.scalars` has them.

    Args:
        weighted: (R, K, ...), (p/q) f of each draw.
        weights: (R, K), p/q.
        finite: (R, K).
        grad: (R, ...), the mean of `weighted`.
        group_size: how many neighbouring draws share a timestep.
    """
    R, K = weights.shape
    values = {
        "nonfinite": (~finite).sum().to(weights.dtype),
        "ess": weights.sum().square() / weights.square().sum(),
        "grad_norm": grad.flatten().norm() / R,
    }
    groups = K // group_size
    if groups > 1:
        means = draw_groups(weighted, group_size).mean(2).flatten(2)
        noise = (means - means.mean(1, keepdim=True)).square().sum() / (groups * (groups - 1))
        values["snr"] = grad.square().sum() / noise
    numbers = torch.stack(list(values.values())).tolist()  # one wait for the device
    return {name: x for name, x in zip(values, numbers) if math.isfinite(x)}
