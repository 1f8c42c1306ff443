"""Where a multi-resolution hash grid keeps its parameters: tiny-cuda-nn's layout (`GridEncoding`, hash type prime).

Level l of a grid of L levels with F features, base resolution N and growth b has, for points of the cube [0, 1]^3:

    scale_l = N b^l - 1            resolution_l = ceil(scale_l) + 1
    size_l  = min(resolution_l^3 rounded up to a multiple of 8, 2^log2_hashmap_size)

A point lies at `scale_l x + 1/2` on the level's lattice. Node (i, j, k) is in row `(i + R (j + R k)) mod size_l` where
R^3 <= size_l, R the resolution, and in row `(i ^ 2654435761 j ^ 805459861 k) mod size_l` elsewhere. All parameters are
one vector: the levels one behind the other, in each the rows, in each row the F features. The encoding of a point is
the levels' interpolated features, level by level. So `encoding.params` of `TinyCudaNNField` and of `FusedHashField` are
the same numbers at the same places. Instant NGP: arXiv 2201.05989.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from carv_3d.scenes.hashed import PRIMES

__all__ = ["HashEncoding", "HashLayout", "encode_reference"]


@dataclass(frozen=True)
class HashLayout:
    """The levels of a grid: `levels` (L, 4) has offset in rows, size, resolution and whether hashed; `scales` (L,)."""

    levels: NDArray[np.int64]
    scales: NDArray[np.float32]
    n_features: int

    @classmethod
    def from_options(
        cls, n_levels: int, n_features: int, log2_hashmap_size: int, base_resolution: int, per_level_scale: float
    ) -> HashLayout:
        """The layout of tiny-cuda-nn's grid with these values."""
        growth = np.exp2(np.arange(n_levels, dtype=np.float32) * np.float32(math.log2(per_level_scale)))
        scales = growth.astype(np.float32) * np.float32(base_resolution) - np.float32(1)
        rows, offset = [], 0
        for scale in scales:
            resolution = math.ceil(float(scale)) + 1
            size = min(-(-(resolution**3) // 8) * 8, 2**log2_hashmap_size)
            rows.append((offset, size, resolution, int(resolution**3 > size)))
            offset += size
        return cls(np.array(rows, dtype=np.int64), scales, n_features)

    @property
    def n_rows(self) -> int:
        """Rows of all levels together."""
        return int(self.levels[-1, 0] + self.levels[-1, 1])


class HashEncoding(nn.Module):
    """The parameters of a grid as one vector, `params`, near 0 as tiny-cuda-nn begins."""

    def __init__(self, layout: HashLayout) -> None:
        super().__init__()
        self.layout = layout
        self.params = nn.Parameter(1e-4 * (2 * torch.rand(layout.n_rows * layout.n_features) - 1))


def encode_reference(params: Tensor, layout: HashLayout, x: Tensor, active: int) -> Tensor:
    """The encoding in torch alone, slow: features (N, L F) at `x` (N, 3) of [0, 1]^3.

    Points outside take the border's value. Levels from `active` on are zero. On every device and in every precision;
    differentiable in `params`, and in `x`.
    """
    table, x = params.view(-1, layout.n_features), x.clamp(0, 1)
    corners = torch.cartesian_prod(*[torch.arange(2, device=x.device)] * 3)  # (8, 3)
    out: list[Tensor] = []
    for (offset, size, res, hashed), scale in zip(layout.levels.tolist(), layout.scales.tolist()):
        if len(out) >= active:
            out.append(x.new_zeros(x.shape[0], layout.n_features))
            continue
        at = scale * x + 0.5
        low = at.detach().floor()
        weight = torch.where(corners == 1, (at - low)[:, None], 1 - (at - low)[:, None]).prod(dim=-1)
        i, j, k = (low.long()[:, None] + corners).unbind(-1)
        row = (i * PRIMES[0]) ^ (j * PRIMES[1]) ^ (k * PRIMES[2]) if hashed else i + res * (j + res * k)
        out.append((weight[..., None] * table[offset + row % size]).sum(dim=1))
    return torch.cat(out, dim=-1)
