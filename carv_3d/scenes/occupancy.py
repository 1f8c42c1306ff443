"""Which cells of the cube around a scene are not empty, so that rendering skips the others."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Occupancy"]


class Occupancy(nn.Module):
    """`resolution`^3 cells of the cube [-radius, radius]^3; all count until the first update.

    Each update reads the density at one random point of each cell. A cell counts while the largest value read there or
    in one of its 26 neighbors, older readings fading, passes the threshold.

    Attributes:
        peaks: the largest density read, fading, (G, G, G).
        cells: 1 where a cell counts, (G, G, G) uint8.
    """

    peaks: Tensor
    cells: Tensor

    def __init__(self, radius: float, resolution: int, decay: float = 0.8) -> None:
        super().__init__()
        self.radius, self.resolution, self.decay = radius, resolution, decay
        self.register_buffer("peaks", torch.zeros((resolution,) * 3))
        self.register_buffer("cells", torch.ones((resolution,) * 3, dtype=torch.uint8))

    @torch.no_grad()
    def update(self, density: Callable[[Tensor], Tensor], threshold: float, seed: int, readings: int = 1) -> None:
        """Read the field anew.

        Args:
            density: points (N, 3) -> densities (N, 1).
            threshold: the density from which a cell counts; the mean of the peaks where that is less, so that a faint
                field is never all empty.
            seed: places the points.
            readings: how many points of each cell are read.
        """
        n, device = self.resolution, self.peaks.device
        self.peaks *= self.decay
        generator = torch.Generator().manual_seed(seed)
        axis = torch.arange(n, device=device)
        corner = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3)
        for _ in range(readings):
            jitter = torch.rand(n**3, 3, generator=generator).to(device)
            x = self.radius * (2 * (corner + jitter) / n - 1)
            inside = (x.norm(dim=-1) < self.radius).nonzero()[:, 0]
            densities = torch.zeros(n**3, device=device).index_copy(0, inside, density(x[inside])[:, 0])
            self.peaks = torch.maximum(self.peaks, densities.view_as(self.peaks))
        near = F.max_pool3d(self.peaks[None, None], 3, stride=1, padding=1)[0, 0]
        least = min(threshold, float(self.peaks.mean()))
        self.cells = (~(near < least)).to(torch.uint8)  # a density that is no number counts
