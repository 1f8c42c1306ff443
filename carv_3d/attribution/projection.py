"""A sparse random projection of gradients: signs, and a sum of rows that are turned by random amounts.

    phi_b = sum over j with h(j) = b of s_j g_j,      h(j) = (j mod d + shift[(j div d) mod C]) mod d

That is a count sketch, one non-zero number a column, whose hash is a permutation within every run of d neighbours.
The signs keep inner products in expectation, `E<phi(x), phi(y)> = <x, y>`, whatever collides; the standard deviation is
that of a count sketch, `sqrt((|x|^2 |y|^2 + <x, y>^2) / d)`, for vectors whose entries know nothing of d. Unlike a
scatter by a table of hashes it is one multiplication and one sum of rows, which a CPU does at the speed of its memory,
and it gives the same bits each time on a GPU, where scattered additions do not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from carv_3d.core.seeds import keyed_generator
from carv_3d.errors import CarvError

CLASSES = 64  # C, how many different turns there are
FLOAT_SIGNS = 2**26  # up to so many parameters the signs are kept as floats, twice as quick as bytes


class Projection:
    """P numbers, in parts as the gradients of a module's parameters, to `dim`.

    They are left as they are where `dim` is None or not below P.
    """

    def __init__(self, num_parameters: int, dim: int | None, seed: int = 0, device: torch.device | str = "cpu") -> None:
        if num_parameters < 1:
            raise CarvError("the model has no parameters, so there is no gradient to attribute by.")
        self.num_parameters = num_parameters
        self.identity = dim is None or dim >= num_parameters
        self.dim: int = num_parameters if dim is None or self.identity else dim
        if self.identity:
            return
        self.classes = min(CLASSES, -(-num_parameters // self.dim))
        row = self.classes * self.dim
        self.rows = -(-num_parameters // row)
        generator = keyed_generator(seed, "projection")
        bits = torch.randint(0, 2, (num_parameters,), generator=generator, dtype=torch.int8)
        signs = bits * 2 - 1
        self.signs = (signs.float() if num_parameters <= FLOAT_SIGNS else signs).to(device)
        shift = torch.randint(0, self.dim, (self.classes,), generator=generator)
        # where the turned row of class c takes its number b from
        self.source = ((torch.arange(self.dim) - shift[:, None]) % self.dim).to(device)
        self._buffer = torch.zeros(self.rows * row, device=device)

    def __call__(self, parts: Sequence[Tensor | None], sizes: Sequence[int]) -> Tensor:
        """(dim,) float32 of gradients of any shapes, one after the other; None counts as zeros of that size."""
        if sum(sizes) != self.num_parameters:
            raise CarvError(f"gradients of {sum(sizes)} numbers came to a projection of {self.num_parameters}.")
        if self.identity:
            device = next((p.device for p in parts if p is not None), torch.device("cpu"))
            zeros = (torch.zeros(n, device=device) for n in sizes)
            return torch.cat([zero if p is None else p.reshape(-1).float() for p, zero in zip(parts, zeros)])
        begin = 0
        for part, size in zip(parts, sizes):
            target = self._buffer[begin : begin + size]
            if part is None:
                target.zero_()
            else:
                torch.mul(part.reshape(-1), self.signs[begin : begin + size], out=target)
            begin += size
        summed = self._buffer.view(self.rows, self.classes, self.dim).sum(0)
        return summed.gather(1, self.source).sum(0)
