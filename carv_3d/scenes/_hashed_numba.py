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


@numba.njit(inline="always", fastmath={"contract", "reassoc", "nsz"})
def _corner(i: Any, j: Any, k: Any, u: Any, v: Any, w: Any, corner: int, p: int, q: int, mask: int) -> Any:
    """Row and weight of one of the eight corners."""
    a, b, c = corner >> 2, (corner >> 1) & 1, corner & 1
    weight = (u if a else ONE - u) * (v if b else ONE - v) * (w if c else ONE - w)
    return ((i + a) ^ ((j + b) * p) ^ ((k + c) * q)) & mask, weight


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def gather(table: Any, x: Any, out: Any, res: int, p: int, q: int) -> None:
    """out (N, C) = values at x (N, 3) of a grid of res^3 nodes, node (i, j, k) in row (i ^ j p ^ k q) % T of table."""
    for n in range(x.shape[0]):
        (i, u), (j, v), (k, w) = _place(x, n, 0, res), _place(x, n, 1, res), _place(x, n, 2, res)
        for channel in range(table.shape[1]):
            out[n, channel] = 0
        for corner in range(8):
            row, weight = _corner(i, j, k, u, v, w, corner, p, q, table.shape[0] - 1)
            for channel in range(table.shape[1]):
                out[n, channel] += weight * table[row, channel]


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def scatter(grad_table: Any, x: Any, grad_out: Any, res: int, p: int, q: int) -> None:
    """grad_table (T, C) += the transpose of `gather` applied to grad_out (N, C)."""
    for n in range(x.shape[0]):
        (i, u), (j, v), (k, w) = _place(x, n, 0, res), _place(x, n, 1, res), _place(x, n, 2, res)
        for corner in range(8):
            row, weight = _corner(i, j, k, u, v, w, corner, p, q, grad_table.shape[0] - 1)
            for channel in range(grad_table.shape[1]):
                grad_table[row, channel] += weight * grad_out[n, channel]
