"""A field with a known shape and known colors."""

from __future__ import annotations

import torch

from carv_3d.scenes.fields import FieldOptions, VoxelGridField


def lattice(n: int, radius: float = 1.08) -> torch.Tensor:
    axis = torch.linspace(-radius, radius, n)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)


def painted_box() -> VoxelGridField:
    """A box, longer along x than y than z, whose +x half is orange and the rest dark green; white air."""
    field = VoxelGridField(FieldOptions(resolution=49))
    x = lattice(49)
    with torch.no_grad():
        inside = (x[..., 0].abs() < 0.7) & (x[..., 1].abs() < 0.4) & (x[..., 2].abs() < 0.25)
        field.grid[..., 0] = torch.where(inside, 8.0, -8.0)
        color = torch.where((x[..., :1] > 0), torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0.05, 0.2, 0.1]))
        color = torch.where(inside[..., None], color, torch.tensor([0.99, 0.99, 0.99]))
        field.grid[..., 1:] = torch.logit(color)
    return field
