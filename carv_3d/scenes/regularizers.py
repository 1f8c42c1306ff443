"""Losses that keep a field a solid object; each is a scalar, weighed by the configuration's `lambda_*`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from nerfacc.volrend import accumulate_along_rays
from torch import Tensor

from carv_3d.scenes.fields import Field, VoxelGridField
from carv_3d.scenes.rendering import RenderOutput

__all__ = [
    "REGULARIZERS", "density_sparsity", "distortion", "opaque", "orientation", "render_orientation", "sparsity",
    "total_variation", "z_variance",
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
    """Mean density over the samples, per unit of length; 0 where no ray has any."""
    return sigmas.mean() if sigmas.numel() else sigmas.sum()


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


def _ray_sums(values: Tensor, out: RenderOutput) -> Tensor:
    """Sums (rays,) of the samples' values, (M, S) of dense samples or (S,) of packed ones."""
    if values.ndim == 2:
        return values.sum(dim=1)
    return accumulate_along_rays(values, None, ray_indices=out.ray_indices, n_rays=out.opacity.numel())[:, 0]


def _sums_in_front(values: Tensor, out: RenderOutput) -> Tensor:
    """At each sample the sum of the values of those in front of it on its ray, in the shape of `values`."""
    if values.ndim == 2:
        return values.cumsum(dim=1) - values
    sums = values.double().cumsum(dim=0) - values  # over all rays: single precision would lose a ray's share
    first = torch.searchsorted(out.ray_indices, out.ray_indices)
    return (sums - sums[first]).to(values)


def z_variance(out: RenderOutput) -> Tensor:
    """HiFA's variance of the distance along a ray (arXiv 2305.18766), in squared units of the world.

    `sum w (t - mean)^2 / sum w`, the mean over rays whose opacity exceeds one half, 0 where there are none.
    """
    t, w = (out.t_starts + out.t_ends) / 2, out.weights
    total = _ray_sums(w, out)
    mean = _ray_sums(w * t, out) / total.clamp_min(1e-5)
    off = t - (mean[:, None] if w.ndim == 2 else mean[out.ray_indices])
    variance, solid = _ray_sums(w * off**2, out) / total.clamp_min(1e-5), total.detach() > 0.5
    return (variance * solid).sum() / solid.sum().clamp_min(1)


def distortion(out: RenderOutput) -> Tensor:
    """Mip-NeRF 360's distortion (arXiv 2111.12077, eq. 15), in units of the world; the mean over all rays.

    `sum_ij w_i w_j |t_i - t_j| + sum_i w_i^2 (t_end - t_start)_i / 3`: least where a ray's weights lie together.
    """
    t, w = (out.t_starts + out.t_ends) / 2, out.weights
    pairs = 2 * w * (t * _sums_in_front(w, out) - _sums_in_front(w * t, out))
    return (pairs + w**2 * (out.t_ends - out.t_starts) / 3).sum() / out.opacity.numel()


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
    "z_variance": lambda field, out: z_variance(out),
    "distortion": lambda field, out: distortion(out),
    "tv": _field_total_variation,
}
"""By the name of their `lambda_*`: of a field and its render."""
