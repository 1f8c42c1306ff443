"""The two compiled loops of `hashed`; imported only where numba is installed."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

ONE = np.float32(1.0)
HALF = np.float32(0.5)


@numba.njit(inline="always", fastmath={"contract", "reassoc", "nsz"})
def _place(x: Any, n: int, axis: int, res: int) -> Any:
    """The lower corner of point n along an axis, and how far beyond it the point lies."""
    u = min(max((x[n, axis] + ONE) * (HALF * np.float32(res - 1)), np.float32(0)), np.float32(res - 1))
    low = min(max(int(u), 0), res - 2)  # clamped again: of a NaN, int() may be anything
    return low, u - np.float32(low)


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def gather(table: Any, x: Any, out: Any, res: int, p: int, q: int) -> None:
    """out (N, C) = values at x (N, 3) of a grid of res^3 nodes, node (i, j, k) in row (i ^ j p ^ k q) % T of table."""
    T, C = table.shape
    mask = T - 1
    for n in range(x.shape[0]):
        i, u = _place(x, n, 0, res)
        j, v = _place(x, n, 1, res)
        k, w = _place(x, n, 2, res)
        for c in range(C):
            out[n, c] = 0
        for a in range(2):
            wa = u if a else ONE - u
            for b in range(2):
                wb = wa * (v if b else ONE - v)
                start = (i + a) ^ ((j + b) * p)
                for d in range(2):
                    weight = wb * (w if d else ONE - w)
                    row = (start ^ ((k + d) * q)) & mask
                    for c in range(C):
                        out[n, c] += weight * table[row, c]


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def scatter(grad_table: Any, x: Any, grad_out: Any, res: int, p: int, q: int) -> None:
    """grad_table (T, C) += the transpose of `gather` applied to grad_out (N, C)."""
    T, C = grad_table.shape
    mask = T - 1
    for n in range(x.shape[0]):
        i, u = _place(x, n, 0, res)
        j, v = _place(x, n, 1, res)
        k, w = _place(x, n, 2, res)
        for a in range(2):
            wa = u if a else ONE - u
            for b in range(2):
                wb = wa * (v if b else ONE - v)
                start = (i + a) ^ ((j + b) * p)
                for d in range(2):
                    weight = wb * (w if d else ONE - w)
                    row = (start ^ ((k + d) * q)) & mask
                    for c in range(C):
                        grad_table[row, c] += weight * grad_out[n, c]
