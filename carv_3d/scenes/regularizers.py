"""Losses that keep a field a solid object; each is a scalar, weighed by the configuration's `lambda_*`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from carv_3d.scenes.fields import Field, VoxelGridField
from carv_3d.scenes.rendering import RenderOutput

__all__ = [
    "REGULARIZERS", "density_sparsity", "opaque", "orientation", "render_orientation", "sparsity", "total_variation",
]  # fmt: skip


def sparsity(opacity: Tensor) -> Tensor:
    """Mean of `sqrt(opacity^2 + 0.01)`; `opacity` of any shape, in [0, 1]."""
    return (opacity**2 + 0.01).sqrt().mean()


def opaque(opacity: Tensor, eps: float = 1e-3) -> Tensor:
    """Mean binary entropy of the opacity, in nats, clamped to [eps, 1 - eps].

    Zero-ish where every ray is either stopped or free, log 2 where all are half stopped.
    """
    p = opacity.clamp(eps, 1 - eps)
    return -(p * p.log() + (1 - p) * (1 - p).log()).mean()


def density_sparsity(sigmas: Tensor) -> Tensor:
    """Mean density over the samples, per unit of length."""
    return sigmas.mean()


def orientation(weights: Tensor, normals: Tensor, directions: Tensor, n_pixels: int) -> Tensor:
    """Ref-NeRF's penalty on normals that point away from the camera: `sum w max(0, n . d)^2 / n_pixels`.

    `weights` (...,), taken as constants, as threestudio takes them; `normals`, `directions` (..., 3), the
    ray directions pointing away from the camera. Differentiable in `normals`.
    """
    facing_away = (normals * directions).sum(dim=-1).clamp_min(0)
    return (weights.detach() * facing_away**2).sum() / n_pixels


def render_orientation(field: Field, out: RenderOutput, min_weight: float = 1e-3) -> Tensor:
    """`orientation` of a render, at the samples whose weight exceeds `min_weight` (six more evaluations)."""
    keep = out.weights.detach() > min_weight
    normals = field.normal(out.positions[keep])
    return orientation(out.weights[keep], normals, out.directions[keep], out.opacity.numel())


def total_variation(field: VoxelGridField, density: bool = True, color: bool = True) -> Tensor:
    """Mean squared difference of neighboring voxels' logits, summed over the three axes."""
    grid = field.grid[..., (0 if density else 1) : (4 if color else 1)]
    terms = [torch.diff(grid, dim=axis).square().mean() for axis in range(3)]
    return terms[0] + terms[1] + terms[2]


def _field_total_variation(field: Field, out: RenderOutput) -> Tensor:
    assert isinstance(field, VoxelGridField), "total variation is of a voxel grid"
    return total_variation(field)


REGULARIZERS: dict[str, Callable[[Field, RenderOutput], Tensor]] = {
    "density": lambda field, out: density_sparsity(out.sigmas),
    "opacity": lambda field, out: (out.opacity + 1e-3).sqrt().mean(),
    "sparsity": lambda field, out: sparsity(out.opacity),
    "opaque": lambda field, out: opaque(out.opacity),
    "orient": render_orientation,
    "tv": _field_total_variation,
}
"""By the name of their `lambda_*`: of a field and its render."""
