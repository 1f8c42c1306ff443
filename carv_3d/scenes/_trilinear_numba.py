"""The two compiled loops of `trilinear`; imported only where numba is installed."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

ONE = np.float32(1.0)
HALF = np.float32(0.5)


@numba.njit(inline="always", fastmath={"contract", "reassoc", "nsz"})
def _corners(x: Any, n: int, D: int, H: int, W: int) -> Any:
    """Index of the lowest corner of point n's voxel, and its eight weights."""
    u = min(max((x[n, 0] + ONE) * (HALF * np.float32(D - 1)), np.float32(0)), np.float32(D - 1))
    v = min(max((x[n, 1] + ONE) * (HALF * np.float32(H - 1)), np.float32(0)), np.float32(H - 1))
    w = min(max((x[n, 2] + ONE) * (HALF * np.float32(W - 1)), np.float32(0)), np.float32(W - 1))
    i = min(max(int(u), 0), D - 2)  # clamped again: a NaN must not reach beyond the array
    j = min(max(int(v), 0), H - 2)
    k = min(max(int(w), 0), W - 2)
    fu, fv, fw = u - np.float32(i), v - np.float32(j), w - np.float32(k)
    a, b, c, d = (ONE - fu) * (ONE - fv), (ONE - fu) * fv, fu * (ONE - fv), fu * fv
    gw = ONE - fw
    return (i * H + j) * W + k, a * gw, a * fw, b * gw, b * fw, c * gw, c * fw, d * gw, d * fw


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def gather(grid: Any, x: Any, out: Any, D: int, H: int, W: int) -> None:
    """out (N, C) = trilinear values of grid (D*H*W, C) at x (N, 3) in [-1, 1]."""
    HW = H * W
    if grid.shape[1] == 4:  # the radiance field: a constant bound lets the compiler use whole registers
        for n in range(x.shape[0]):
            o, w0, w1, w2, w3, w4, w5, w6, w7 = _corners(x, n, D, H, W)
            for q in range(4):
                out[n, q] = (
                    (w0 * grid[o, q] + w1 * grid[o + 1, q])
                    + (w2 * grid[o + W, q] + w3 * grid[o + W + 1, q])
                    + (w4 * grid[o + HW, q] + w5 * grid[o + HW + 1, q])
                    + (w6 * grid[o + HW + W, q] + w7 * grid[o + HW + W + 1, q])
                )
    else:
        for n in range(x.shape[0]):
            o, w0, w1, w2, w3, w4, w5, w6, w7 = _corners(x, n, D, H, W)
            for q in range(grid.shape[1]):
                out[n, q] = (
                    (w0 * grid[o, q] + w1 * grid[o + 1, q])
                    + (w2 * grid[o + W, q] + w3 * grid[o + W + 1, q])
                    + (w4 * grid[o + HW, q] + w5 * grid[o + HW + 1, q])
                    + (w6 * grid[o + HW + W, q] + w7 * grid[o + HW + W + 1, q])
                )


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def scatter(grad_grid: Any, x: Any, grad_out: Any, D: int, H: int, W: int) -> None:
    """grad_grid (D*H*W, C) += the transpose of `gather` applied to grad_out (N, C)."""
    HW = H * W
    if grad_grid.shape[1] == 4:
        for n in range(x.shape[0]):
            o, w0, w1, w2, w3, w4, w5, w6, w7 = _corners(x, n, D, H, W)
            for q in range(4):
                g = grad_out[n, q]
                grad_grid[o, q] += w0 * g
                grad_grid[o + 1, q] += w1 * g
                grad_grid[o + W, q] += w2 * g
                grad_grid[o + W + 1, q] += w3 * g
                grad_grid[o + HW, q] += w4 * g
                grad_grid[o + HW + 1, q] += w5 * g
                grad_grid[o + HW + W, q] += w6 * g
                grad_grid[o + HW + W + 1, q] += w7 * g
    else:
        for n in range(x.shape[0]):
            o, w0, w1, w2, w3, w4, w5, w6, w7 = _corners(x, n, D, H, W)
            for q in range(grad_grid.shape[1]):
                g = grad_out[n, q]
                grad_grid[o, q] += w0 * g
                grad_grid[o + 1, q] += w1 * g
                grad_grid[o + W, q] += w2 * g
                grad_grid[o + W + 1, q] += w3 * g
                grad_grid[o + HW, q] += w4 * g
                grad_grid[o + HW + 1, q] += w5 * g
                grad_grid[o + HW + W, q] += w6 * g
                grad_grid[o + HW + W + 1, q] += w7 * g
