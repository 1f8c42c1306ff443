"""Trilinear interpolation of a channels-last voxel grid: what a CPU render spends its time on.

`F.grid_sample` takes 50-60 ms forward and backward for the 147 456 samples of a 64x64 image with 36
samples a ray, on one core; the two loops here, compiled by numba, take 10 ms. They are used on the CPU, in
float32, where numba is installed and the points need no gradient; anything else goes through
`F.grid_sample`, which computes the same.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from carv_3d.errors import CarvError

__all__ = ["compiled", "interpolate", "interpolate_reference", "loops", "numba_available"]


@lru_cache(maxsize=1)
def numba_available() -> bool:
    """Whether the compiled loops can be used on this machine."""
    return importlib.util.find_spec("numba") is not None


@lru_cache(maxsize=1)
def loops() -> Any:
    """The module of compiled loops, which are kept on disk between runs where that is possible."""
    from carv_3d.scenes import _numba_loops

    return _numba_loops


ONE_ORDER = (
    "the compiled loops of fields have no second derivatives; leave create_graph out, or give points that require a "
    "gradient, which go through torch"
)


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """The backward pass of compiled loops, which autograd cannot follow: CarvError where it is asked to."""

    @functools.wraps(backward)
    def run(ctx: Any, *grad_outputs: Any) -> Any:
        if torch.is_grad_enabled():
            raise CarvError(ONE_ORDER)
        return backward(ctx, *grad_outputs)

    return run


class _Trilinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grid: Tensor, x: Tensor) -> Tensor:
        D, H, W, C = grid.shape
        flat = grid.detach().contiguous().view(-1, C)
        x = x.detach().contiguous()
        out = torch.empty(x.shape[0], C)
        loops().gather_dense(flat.numpy(), x.numpy(), out.numpy(), D, H, W)
        ctx.save_for_backward(x)
        ctx.grid_shape = grid.shape
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        D, H, W, C = ctx.grid_shape
        grad_grid = torch.zeros(D * H * W, C)
        loops().scatter_dense(grad_grid.numpy(), x.numpy(), grad_outputs[0].contiguous().numpy(), D, H, W)
        return grad_grid.view(D, H, W, C), None


def compiled(values: Tensor, x: Tensor) -> bool:
    """Whether compiled loops can interpolate these values at these points."""
    return (
        numba_available()
        and values.device.type == "cpu"
        and values.dtype == x.dtype == torch.float32
        and not (x.requires_grad and torch.is_grad_enabled())
    )


def interpolate_reference(grid: Tensor, x: Tensor) -> Tensor:
    """`interpolate` by `F.grid_sample`: on every device, differentiable in `x` too, slower on the CPU."""
    volume = grid.permute(3, 0, 1, 2)[None]  # (1, C, D, H, W), a view: channels stay innermost
    points = x.flip(-1).view(1, 1, 1, -1, 3)  # grid_sample wants the last axis first
    out = F.grid_sample(volume, points, mode="bilinear", padding_mode="border", align_corners=True)
    return out.view(grid.shape[-1], -1).t()


def interpolate(grid: Tensor, x: Tensor) -> Tensor:
    """Values (N, C) of `grid` (D, H, W, C) at the points `x` (N, 3) of the cube [-1, 1]^3.

    `x[:, 0]` runs along D, `x[:, 1]` along H, `x[:, 2]` along W; -1 and 1 are the centers of the outermost
    voxels (`align_corners=True`), and points outside take the border's value.
    Differentiable in `grid`, and in `x` where `x` requires a gradient.
    """
    if compiled(grid, x) and min(grid.shape[:3]) > 1:
        out: Tensor = _Trilinear.apply(grid, x)
        return out
    return interpolate_reference(grid, x)
