"""The compiled loops of `trilinear` and `hashed`; imported only where numba is installed."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

ONE = np.float32(1.0)
HALF = np.float32(0.5)
FAST = {"contract", "reassoc", "nsz"}


@numba.njit(inline="always", fastmath=FAST)
def _place(x: Any, n: int, axis: int, res: int) -> Any:
    """The lower node of point n along an axis, and how far beyond it the point lies."""
    u = min(max((x[n, axis] + ONE) * (HALF * np.float32(res - 1)), np.float32(0)), np.float32(res - 1))
    low = min(max(int(u), 0), res - 2)  # clamped again: of a NaN, int() may be anything
    return low, u - np.float32(low)


@numba.njit(inline="always", fastmath=FAST)
def _places(x: Any, n: int, D: int, H: int, W: int) -> Any:
    return _place(x, n, 0, D), _place(x, n, 1, H), _place(x, n, 2, W)


@numba.njit(inline="always", fastmath=FAST)
def _corners(x: Any, n: int, D: int, H: int, W: int) -> Any:
    """Index of the lowest corner of point n's voxel, and its eight weights."""
    (i, fu), (j, fv), (k, fw) = _places(x, n, D, H, W)
    a, b, c, d = (ONE - fu) * (ONE - fv), (ONE - fu) * fv, fu * (ONE - fv), fu * fv
    gw = ONE - fw
    return (i * H + j) * W + k, (a * gw, a * fw, b * gw, b * fw, c * gw, c * fw, d * gw, d * fw)


@numba.njit(inline="always", fastmath=FAST)
def _gather(grid: Any, x: Any, out: Any, D: int, H: int, W: int, channels: int) -> None:
    HW = H * W
    for n in range(x.shape[0]):
        o, w = _corners(x, n, D, H, W)
        for q in range(channels):
            out[n, q] = (
                (w[0] * grid[o, q] + w[1] * grid[o + 1, q])
                + (w[2] * grid[o + W, q] + w[3] * grid[o + W + 1, q])
                + (w[4] * grid[o + HW, q] + w[5] * grid[o + HW + 1, q])
                + (w[6] * grid[o + HW + W, q] + w[7] * grid[o + HW + W + 1, q])
            )


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def gather_dense(grid: Any, x: Any, out: Any, D: int, H: int, W: int) -> None:
    """Write to out (N, C) the trilinear values of grid (D*H*W, C) at x (N, 3) in [-1, 1]."""
    if grid.shape[1] == 4:  # the radiance field: a constant bound lets the compiler use whole registers
        _gather(grid, x, out, D, H, W, 4)
    else:
        _gather(grid, x, out, D, H, W, grid.shape[1])


@numba.njit(inline="always", fastmath=FAST)
def _scatter(grad_grid: Any, x: Any, grad_out: Any, D: int, H: int, W: int, channels: int) -> None:
    HW = H * W
    for n in range(x.shape[0]):
        o, w = _corners(x, n, D, H, W)
        for q in range(channels):
            g = grad_out[n, q]
            grad_grid[o, q] += w[0] * g
            grad_grid[o + 1, q] += w[1] * g
            grad_grid[o + W, q] += w[2] * g
            grad_grid[o + W + 1, q] += w[3] * g
            grad_grid[o + HW, q] += w[4] * g
            grad_grid[o + HW + 1, q] += w[5] * g
            grad_grid[o + HW + W, q] += w[6] * g
            grad_grid[o + HW + W + 1, q] += w[7] * g


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def scatter_dense(grad_grid: Any, x: Any, grad_out: Any, D: int, H: int, W: int) -> None:
    """Add to grad_grid (D*H*W, C) the transpose of `gather_dense` applied to grad_out (N, C)."""
    if grad_grid.shape[1] == 4:
        _scatter(grad_grid, x, grad_out, D, H, W, 4)
    else:
        _scatter(grad_grid, x, grad_out, D, H, W, grad_grid.shape[1])


@numba.njit(inline="always", fastmath=FAST)
def _hashed_corner(places: Any, corner: int, p: int, q: int, mask: int) -> Any:
    """Row and weight of one of the eight corners."""
    (i, u), (j, v), (k, w) = places
    a, b, c = corner >> 2, (corner >> 1) & 1, corner & 1
    weight = (u if a else ONE - u) * (v if b else ONE - v) * (w if c else ONE - w)
    return ((i + a) ^ ((j + b) * p) ^ ((k + c) * q)) & mask, weight


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def gather_hashed(table: Any, x: Any, out: Any, res: int, p: int, q: int) -> None:
    """Write to out (N, C) the values at x (N, 3) of res^3 nodes; row (i ^ j p ^ k q) % T has node (i, j, k)."""
    for n in range(x.shape[0]):
        places = _places(x, n, res, res, res)
        for channel in range(table.shape[1]):
            out[n, channel] = 0
        for corner in range(8):
            row, weight = _hashed_corner(places, corner, p, q, table.shape[0] - 1)
            for channel in range(table.shape[1]):
                out[n, channel] += weight * table[row, channel]


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def scatter_hashed(grad_table: Any, x: Any, grad_out: Any, res: int, p: int, q: int) -> None:
    """Add to grad_table (T, C) the transpose of `gather_hashed` applied to grad_out (N, C)."""
    for n in range(x.shape[0]):
        places = _places(x, n, res, res, res)
        for corner in range(8):
            row, weight = _hashed_corner(places, corner, p, q, grad_table.shape[0] - 1)
            for channel in range(grad_table.shape[1]):
                grad_table[row, channel] += weight * grad_out[n, channel]
