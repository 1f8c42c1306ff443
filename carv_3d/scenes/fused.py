"""A hash grid with a small network, and its volume rendering, fused into compiled loops for the CPU.

The torch path writes the features of every level at every sample, and its backward pass reads them again. Here each
sample's features live in a few cache lines: `_fused_loops` goes along one ray at a time. It leaves out the samples in
empty cells and those behind what is opaque, and its backward pass computes the features anew.

Gradients do not depend on the number of threads: rays are dealt to `PARTS` buffers in a fixed order, and the buffers
are added in a fixed order. `render_reference` is the same in torch alone.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.scenes.hash_layout import HashLayout
from carv_3d.scenes.trilinear import ONE_ORDER, first_order, numba_available

__all__ = ["FusedField", "RaySamples", "can_fuse", "field_logits", "render_fused", "render_reference"]

PARTS = 4  # gradient buffers, whatever the number of threads
OPAQUE = 1e-4  # the transmittance below which a ray ends


class FusedField(NamedTuple):
    """What the loops read: the layout, the number of active levels, and radius, density scale, blob scale and radius.

    `tensors`: the grid (n,) in tiny-cuda-nn's layout, then a network with one layer of H hidden units after torch's
    convention: weight (H, L F), bias (H,), weight (4, H), bias (4,).
    """

    layout: HashLayout
    active: int
    scene: tuple[float, float, float, float]
    tensors: tuple[Tensor, ...]


class RaySamples(NamedTuple):
    """Samples of M rays.

    `origins`, `directions` (M, 3); `starts`, `ends`, `places` (M, S): each sample's interval and where in it the field
    is read; `cells` (G, G, G) uint8: the cells of the cube around the scene that are not empty.
    """

    origins: Tensor
    directions: Tensor
    starts: Tensor
    ends: Tensor
    places: Tensor
    cells: Tensor


def can_fuse(field: FusedField) -> bool:
    """Whether the compiled loops serve this field: on the CPU, in float32, with two features at each entry."""
    on_cpu = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in field.tensors)
    return numba_available() and on_cpu and field.layout.n_features == 2


@cache
def _loops() -> Any:
    from carv_3d.scenes import _fused_loops

    return _fused_loops


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="carv-fused")


def _in_parts(call: Callable[[int], None]) -> None:
    """`call(part)` of each part, on as many threads as torch uses; the loops let other threads run meanwhile."""
    threads = min(torch.get_num_threads(), PARTS)
    if threads == 1:
        for part in range(PARTS):
            call(part)
    else:
        list(_pool(threads).map(call, range(PARTS)))


def _arrays(field: FusedField, tensors: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """A field as the loops take it, with these parameters."""
    params, w1, b1, w2, b2 = (p.detach() for p in tensors)
    net = (w1.t().contiguous(), b1.contiguous(), w2.contiguous(), b2.contiguous(), torch.tensor(field.scene))
    table = params.contiguous().view(-1, 2).numpy()
    return (table, field.layout.levels, field.layout.scales, field.active, *(x.numpy() for x in net))


class _Gradients:
    """A buffer of the parameters' gradients for each part."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        params, w1, b1, w2, b2 = tensors
        shapes = (params.numel() // 2, 2), w1.t().shape, b1.shape, w2.shape, b2.shape
        self.buffers = [torch.zeros(PARTS, *shape) for shape in shapes]
        self.parts = [tuple(b[part].numpy() for b in self.buffers) for part in range(PARTS)]

    def total(self) -> tuple[Tensor, ...]:
        table, w1, b1, w2, b2 = (b.sum(dim=0) for b in self.buffers)
        return table.view(-1), w1.t(), b1, w2, b2


class _Points(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, field: FusedField, x: Tensor, *tensors: Tensor) -> Tensor:
        x = x.detach().contiguous()
        out = torch.empty(x.shape[0], 4)
        arrays, x_array, out_array = _arrays(field, tensors), x.numpy(), out.numpy()
        _in_parts(lambda part: _loops().points_forward(arrays, x_array, out_array, part, PARTS))
        ctx.field, ctx.x = field._replace(tensors=()), x
        ctx.save_for_backward(*tensors)
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors
        g, grads, arrays = grad_outputs[0].contiguous().numpy(), _Gradients(tensors), _arrays(ctx.field, tensors)
        x = ctx.x.numpy()
        _in_parts(lambda part: _loops().points_backward(arrays, grads.parts[part], x, g, part, PARTS))
        return None, None, *grads.total()


class _Rays(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, field: FusedField, rays: RaySamples, *tensors: Tensor) -> tuple[Tensor, ...]:
        rays = RaySamples(*(x.detach().contiguous() for x in rays))
        out = torch.zeros(rays.origins.shape[0], 5)
        weights, sigmas, before = (torch.zeros(rays.places.shape) for _ in range(3))
        given = (*(x.numpy() for x in rays), OPAQUE)
        results = [x.numpy() for x in (out, weights, sigmas, before)]
        arrays = _arrays(field, tensors)
        _in_parts(lambda part: _loops().rays_forward(arrays, given, *results, part, PARTS))
        ctx.field, ctx.rays = field._replace(tensors=()), rays
        ctx.save_for_backward(weights, before, *tensors)
        ctx.set_materialize_grads(False)
        return out, weights, sigmas

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise CarvError(ONE_ORDER)
        weights, before, *parameters = ctx.saved_tensors
        tensors = tuple(parameters)
        g_out, *g_samples = grad_outputs
        per_sample = any(g is not None for g in g_samples)
        g_out = weights.new_zeros(len(weights), 5) if g_out is None else g_out
        filler = torch.zeros_like(weights) if per_sample else torch.zeros(1, 1)
        g_samples = [filler if g is None else g for g in g_samples]
        given = (*(x.numpy() for x in ctx.rays), OPAQUE)
        read = [x.contiguous().numpy() for x in (weights, before, g_out, *g_samples)]
        arrays, grads = _arrays(ctx.field, tensors), _Gradients(tensors)
        _in_parts(lambda part: _loops().rays_backward(arrays, grads.parts[part], given, *read, per_sample, part, PARTS))
        return None, None, *grads.total()


def field_logits(field: FusedField, x: Tensor) -> Tensor:
    """Logits (N, 4), the blob's included, at `x` (N, 3) in world units; differentiable in the parameters."""
    out: Tensor = _Points.apply(field, x, *field.tensors)
    return out


def render_fused(field: FusedField, rays: RaySamples) -> tuple[Tensor, Tensor, Tensor]:
    """Volume rendering, where `can_fuse`.

    Returns:
        Color, opacity and depth times opacity (M, 5); weights and densities of the samples (M, S), 0 where a sample
        lies in an empty cell or behind what is opaque. All are differentiable in the field's parameters.
    """
    out: tuple[Tensor, Tensor, Tensor] = _Rays.apply(field, rays, *field.tensors)
    return out


def render_reference(
    logits: Callable[[Tensor], Tensor], field: FusedField, rays: RaySamples
) -> tuple[Tensor, Tensor, Tensor]:
    """`render_fused` in torch alone, of any logits: slow, in every precision, on every device."""
    x = rays.origins[:, None] + rays.places[..., None] * rays.directions[:, None]
    n = rays.cells.shape[0]
    i, j, k = (n * (x / (2 * field.scene[0]) + 0.5)).long().clamp(0, n - 1).unbind(-1)
    raw = logits(x.view(-1, 3)).view(*rays.places.shape, 4)
    sigma = field.scene[1] * F.softplus(raw[..., 0]) * (rays.cells[i, j, k] != 0)
    depth = sigma * (rays.ends - rays.starts)
    light = torch.exp(-(torch.cumsum(depth, dim=1) - depth))
    weights = light * -torch.expm1(-depth) * (light >= OPAQUE)
    features = torch.cat([torch.sigmoid(raw[..., 1:]), torch.ones_like(raw[..., :1]), rays.places[..., None]], dim=-1)
    return (weights[..., None] * features).sum(dim=1), weights, sigma * (light >= OPAQUE)
