"""The part of nvdiffrast that threestudio's mesh renderer calls, in torch: every pixel against every triangle.

For renders of a few hundred pixels on a CPU. Coverage and depth are exact, barycentric coordinates are perspective
correct and differentiable in the vertices, edges are not smoothed (`antialias` gives back what it is given, so the
outline passes no gradient).
"""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import torch
from torch import Tensor


class Context:
    """Holds nothing; `device` as nvdiffrast's has it."""

    def __init__(self, device: Any = None) -> None:
        self.device = device


def rasterize(
    context: Context, pos: Tensor, tri: Tensor, resolution: tuple[int, int], **_: Any
) -> tuple[Tensor, Tensor]:
    """(B, H, W, 4) of clip positions (B, V, 4) and triangles (F, 3): u, v, z/w, and the triangle's number from 1.

    0 is no triangle. The second value has no derivatives by pixel in it.
    """
    made = torch.stack([_rasterize_one(each, tri.long(), *map(int, resolution)) for each in pos])
    return made, made.new_zeros(made.shape)


def _rasterize_one(pos: Tensor, tri: Tensor, height: int, width: int) -> Tensor:
    x = (torch.arange(width, device=pos.device) * 2 + 1) / width - 1
    y = (torch.arange(height, device=pos.device) * 2 + 1) / height - 1
    pixels = torch.stack([x.expand(height, width), y[:, None].expand(height, width), torch.ones(height, width)], -1)
    pixels = pixels.reshape(-1, 3).to(pos)
    with torch.no_grad():
        nearest = torch.full((len(pixels),), torch.inf).to(pos)
        number = torch.zeros(len(pixels), dtype=torch.long, device=pos.device)
        for begin in range(0, len(tri), 4096):
            part = tri[begin : begin + 4096]
            weights, depth = _coordinates(pos[part][None], pixels[:, None])
            inside = (weights >= 0).all(-1) & (depth.abs() <= 1)
            z, which = torch.where(inside, depth, torch.inf).min(1)
            closer = z < nearest
            nearest, number = torch.where(closer, z, nearest), torch.where(closer, which + begin + 1, number)
    hit = number > 0
    weights, depth = _coordinates(pos[tri[(number - 1).clamp_min(0)]], pixels)
    out = torch.cat([weights[:, :2], depth[:, None], number[:, None].to(pos)], 1)
    return torch.where(hit[:, None], out, torch.zeros_like(out)).reshape(height, width, 4)


def _coordinates(corners: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Barycentric coordinates (..., 3) and z/w (...) of pixels (..., 3) in triangles (..., 3, 4)."""
    a, b, c = corners[..., [0, 1, 3]].unbind(-2)
    edges = torch.stack([torch.cross(b, c, -1), torch.cross(c, a, -1), torch.cross(a, b, -1)], -2)
    scaled = (edges * pixels[..., None, :]).sum(-1)
    total = scaled.sum(-1, keepdim=True)
    weights = scaled / torch.where(total == 0, torch.ones_like(total), total)
    z, w = ((weights * corners[..., i]).sum(-1) for i in (2, 3))
    depth = torch.where(w > 0, z / torch.where(w == 0, torch.ones_like(w), w), torch.full_like(w, 2.0))
    return weights, depth


def interpolate(attr: Tensor, rast: Tensor, tri: Tensor, **_: Any) -> tuple[Tensor, None]:
    """(B, H, W, C) of attributes (V, C) or (B, V, C); 0 where there is no triangle."""
    batched = attr if attr.dim() == 3 else attr[None]
    number = rast[..., 3].long()
    rows = []
    for b, which in enumerate(number):
        corners = batched[min(b, len(batched) - 1)][tri.long()[(which - 1).clamp_min(0)]]
        u, v = rast[b, ..., 0:1], rast[b, ..., 1:2]
        value = u * corners[..., 0, :] + v * corners[..., 1, :] + (1 - u - v) * corners[..., 2, :]
        rows.append(torch.where((which > 0)[..., None], value, torch.zeros_like(value)))
    return torch.stack(rows), None


def antialias(color: Tensor, rast: Tensor, pos: Tensor, tri: Tensor, **_: Any) -> Tensor:
    """The colors as they are."""
    return color


def install() -> None:
    """In place of nvdiffrast, where it is not installed."""
    if "nvdiffrast" in sys.modules or importlib.util.find_spec("nvdiffrast") is not None:
        return
    package, module = types.ModuleType("nvdiffrast"), types.ModuleType("nvdiffrast.torch")
    for function in (rasterize, interpolate, antialias):
        setattr(module, function.__name__, function)
    module.RasterizeGLContext = module.RasterizeCudaContext = Context  # type: ignore[attr-defined]
    package.torch, package.__path__ = module, []  # type: ignore[attr-defined]
    sys.modules.update({"nvdiffrast": package, "nvdiffrast.torch": module})
