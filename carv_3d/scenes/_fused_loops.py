"""The compiled loops of `fused`: a hash grid with a small network, at points and along rays, forward and backward.

Each loop works on the blocks `part, part + parts, ...` of `BLOCK` points or rays. It holds one point's features at a
time. Signatures are explicit, so that each loop is compiled once and its machine code is kept on disk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import boolean, float32, int64, njit, types, uint8

from carv_3d.scenes.hashed import PRIMES

BLOCK = 32
FAST = {"contract", "reassoc", "nsz", "arcp"}  # numbers that are not finite stay what they are
_, P, Q = PRIMES
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)

vector, matrix, cube = float32[::1], float32[:, ::1], float32[:, :, ::1]
# table (rows, 2); levels (L, 4), scales (L,), active levels; network: W1^T (2L, H), b1, W2 (4, H), b2;
# scene: radius, density scale, blob scale, blob radius
FIELD = types.Tuple((matrix, int64[:, ::1], vector, int64, matrix, vector, matrix, vector, vector))
GRADIENT = types.Tuple((matrix, matrix, vector, matrix, vector))  # of table, W1^T, b1, W2, b2


@njit(fastmath=FAST, forceinline=True)
def _workspace(levels: Any, hidden: int) -> Any:
    """Features, hidden units, logits, gradient of the hidden units, and rows and weights of the corners."""
    n = 8 * levels
    return (
        np.zeros(2 * levels, np.float32), np.zeros(hidden, np.float32), np.zeros(4, np.float32),
        np.zeros(hidden, np.float32), np.zeros(n, np.uint32), np.zeros(n, np.float32),
    )  # fmt: skip


@njit(fastmath=FAST, forceinline=True)
def _cell(x: Any, scale: Any, res: Any) -> Any:
    """Lower node along an axis, and how far beyond it a coordinate of [0, 1] lies."""
    u = scale * min(max(x, ZERO), ONE) + HALF
    low = min(max(int(u), 0), res - 1)  # of what is no number, int() may be anything
    return low, u - np.float32(low)


@njit(fastmath=FAST, forceinline=True)
def _encode(field: Any, x: Any, y: Any, z: Any, features: Any, rows: Any, weights: Any) -> None:
    """Write the features at a point of [0, 1]^3, and the rows and weights of its corners."""
    table, levels, scales = field[0], field[1], field[2]
    for level in range(field[3]):
        offset, size, res = levels[level, 0], levels[level, 1], levels[level, 2]
        i, u = _cell(x, scales[level], res)
        j, v = _cell(y, scales[level], res)
        k, w = _cell(z, scales[level], res)
        base = 8 * level
        if levels[level, 3] == 1:
            mask, j0, j1, k0, k1 = size - 1, j * P, (j + 1) * P, k * Q, (k + 1) * Q
            for corner in range(8):
                row = ((i + (corner & 1)) ^ (j1 if corner & 2 else j0) ^ (k1 if corner & 4 else k0)) & mask
                rows[base + corner] = np.uint32(offset + row)
        else:
            lowest = i + res * (j + res * k)
            for corner in range(8):
                row = lowest + (corner & 1) + (res if corner & 2 else 0) + (res * res if corner & 4 else 0)
                rows[base + corner] = np.uint32(offset + (row - size if row >= size else row))
        u0, v0, w0 = ONE - u, ONE - v, ONE - w
        c00, c01, c10, c11 = v0 * w0, v * w0, v0 * w, v * w
        weights[base], weights[base + 1], weights[base + 2], weights[base + 3] = u0 * c00, u * c00, u0 * c01, u * c01
        weights[base + 4], weights[base + 5], weights[base + 6], weights[base + 7] = (
            u0 * c10,
            u * c10,
            u0 * c11,
            u * c11,
        )
        a, b = ZERO, ZERO
        for corner in range(base, base + 8):
            at, weight = rows[corner], weights[corner]
            a += weight * table[at, 0]
            b += weight * table[at, 1]
        features[2 * level], features[2 * level + 1] = a, b


@njit(fastmath=FAST, forceinline=True)
def _network(field: Any, features: Any, hidden: Any, raw: Any) -> None:
    """Write the hidden units and the four logits."""
    w1, b1, w2, b2 = field[4], field[5], field[6], field[7]
    n = b1.shape[0]
    for h in range(n):
        hidden[h] = b1[h]
    for level in range(field[3]):
        a, b = features[2 * level], features[2 * level + 1]
        for h in range(n):
            hidden[h] += a * w1[2 * level, h] + b * w1[2 * level + 1, h]
    for h in range(n):
        if hidden[h] < ZERO:
            hidden[h] = ZERO
    for k in range(4):
        total = ZERO
        for h in range(n):
            total += w2[k, h] * hidden[h]
        raw[k] = total + b2[k]


@njit(fastmath=FAST, forceinline=True)
def _logits(field: Any, space: Any, x: Any, y: Any, z: Any) -> None:
    """Leave the logits at a point of the world in the workspace."""
    features, hidden, raw, _, rows, weights = space
    scene = field[8]
    unit = HALF / scene[0]
    _encode(field, x * unit + HALF, y * unit + HALF, z * unit + HALF, features, rows, weights)
    _network(field, features, hidden, raw)
    raw[0] += scene[2] * (scene[3] - np.sqrt(x * x + y * y + z * z))


@njit(fastmath=FAST, forceinline=True)
def _back(field: Any, grad: Any, space: Any, g: Any) -> None:
    """Add to `grad` what the gradient `g` (4,) of the logits, just computed in the workspace, is in the parameters."""
    features, hidden, _, grad_hidden, rows, weights = space
    w1, w2 = field[4], field[6]
    g_table, g_w1, g_b1, g_w2, g_b2 = grad
    g0, g1, g2, g3 = g[0], g[1], g[2], g[3]
    n = hidden.shape[0]
    for k in range(4):
        g_b2[k] += g[k]
    for h in range(n):
        value = g0 * w2[0, h] + g1 * w2[1, h] + g2 * w2[2, h] + g3 * w2[3, h]
        value = value if hidden[h] > ZERO else ZERO
        grad_hidden[h] = value
        g_b1[h] += value
    for k in range(4):
        for h in range(n):
            g_w2[k, h] += g[k] * hidden[h]
    for level in range(field[3]):
        fa, fb, a, b = features[2 * level], features[2 * level + 1], ZERO, ZERO
        for h in range(n):
            value = grad_hidden[h]
            g_w1[2 * level, h] += fa * value
            g_w1[2 * level + 1, h] += fb * value
        for h in range(n):
            value = grad_hidden[h]
            a += w1[2 * level, h] * value
            b += w1[2 * level + 1, h] * value
        for corner in range(8 * level, 8 * level + 8):
            g_table[rows[corner], 0] += weights[corner] * a
            g_table[rows[corner], 1] += weights[corner] * b


@njit(fastmath=FAST, forceinline=True)
def _softplus(x: Any) -> Any:
    return x if x > np.float32(20) else np.log1p(np.exp(x))


@njit(fastmath=FAST, forceinline=True)
def _sigmoid(x: Any) -> Any:
    return ONE / (ONE + np.exp(-x))


@njit([types.void(FIELD, matrix, matrix, int64, int64)], cache=True, nogil=True, fastmath=FAST)
def points_forward(field: Any, x: Any, out: Any, part: int, parts: int) -> None:
    """Write to out (N, 4) the logits at x (N, 3)."""
    space = _workspace(field[1].shape[0], field[5].shape[0])
    for begin in range(part * BLOCK, x.shape[0], parts * BLOCK):
        for n in range(begin, min(begin + BLOCK, x.shape[0])):
            _logits(field, space, x[n, 0], x[n, 1], x[n, 2])
            for k in range(4):
                out[n, k] = space[2][k]


@njit([types.void(FIELD, GRADIENT, matrix, matrix, int64, int64)], cache=True, nogil=True, fastmath=FAST)
def points_backward(field: Any, grad: Any, x: Any, g: Any, part: int, parts: int) -> None:
    """Add to `grad` the transpose of `points_forward`'s derivative applied to g (N, 4)."""
    space = _workspace(field[1].shape[0], field[5].shape[0])
    for begin in range(part * BLOCK, x.shape[0], parts * BLOCK):
        for n in range(begin, min(begin + BLOCK, x.shape[0])):
            if g[n, 0] != ZERO or g[n, 1] != ZERO or g[n, 2] != ZERO or g[n, 3] != ZERO:
                _logits(field, space, x[n, 0], x[n, 1], x[n, 2])
                _back(field, grad, space, g[n])


@njit(fastmath=FAST, forceinline=True)
def _occupied(cells: Any, unit: Any, x: Any, y: Any, z: Any) -> Any:
    """Whether the cell of a point counts; `unit` is 1 / (2 radius)."""
    n = cells.shape[0]
    i, j, k = int((x * unit + HALF) * n), int((y * unit + HALF) * n), int((z * unit + HALF) * n)
    i, j, k = min(max(i, 0), n - 1), min(max(j, 0), n - 1), min(max(k, 0), n - 1)
    return cells[i, j, k] != 0


RAYS = types.Tuple((matrix, matrix, matrix, matrix, matrix, uint8[:, :, ::1], float32))


@njit([types.void(FIELD, RAYS, matrix, matrix, matrix, matrix, int64, int64)], cache=True, nogil=True, fastmath=FAST)
def rays_forward(
    field: Any, rays: Any, out: Any, weights: Any, sigmas: Any, before: Any, part: int, parts: int
) -> None:
    """Render rays: color, opacity and summed depth into out (M, 5), and per sample (M, S), all of which begin as 0.

    rays: origins, directions (M, 3); starts, ends, places of the samples (M, S); occupied cells; the transmittance
    below which a ray ends. `before` has the transmittance in front of each sample, and 0 at those left out.
    """
    origins, directions, starts, ends, places, cells, least = rays
    space, scene = _workspace(field[1].shape[0], field[5].shape[0]), field[8]
    raw, unit = space[2], HALF / scene[0]
    for begin in range(part * BLOCK, origins.shape[0], parts * BLOCK):
        for m in range(begin, min(begin + BLOCK, origins.shape[0])):
            light = ONE
            for s in range(places.shape[1]):
                if light < least:
                    break
                t = places[m, s]
                x = origins[m, 0] + t * directions[m, 0]
                y = origins[m, 1] + t * directions[m, 1]
                z = origins[m, 2] + t * directions[m, 2]
                if not _occupied(cells, unit, x, y, z):
                    continue
                _logits(field, space, x, y, z)
                sigma = scene[1] * _softplus(raw[0])
                weight = -np.expm1(-sigma * (ends[m, s] - starts[m, s])) * light
                sigmas[m, s], weights[m, s], before[m, s] = sigma, weight, light
                for c in range(3):
                    out[m, c] += weight * _sigmoid(raw[c + 1])
                out[m, 3] += weight
                out[m, 4] += weight * t
                light -= weight


@njit(
    [types.void(FIELD, GRADIENT, RAYS, matrix, matrix, matrix, matrix, matrix, boolean, int64, int64)],
    cache=True, nogil=True, fastmath=FAST,
)  # fmt: skip
def rays_backward(
    field: Any, grad: Any, rays: Any, weights: Any, before: Any,
    g_out: Any, g_weights: Any, g_sigmas: Any, per_sample: bool, part: int, parts: int,
) -> None:  # fmt: skip
    """Add to `grad` the transpose of `rays_forward`'s derivative applied to g_out (M, 5) and to g_* (M, S).

    g_weights, g_sigmas: read where `per_sample`. From a ray's end to its start, with q_i the derivative of the result
    in weight i: d/d sigma_i = (t_end - t_start) (before_{i+1} q_i - sum_{j > i} weight_j q_j).
    """
    origins, directions, starts, ends, places, _, _ = rays
    space, scene = _workspace(field[1].shape[0], field[5].shape[0]), field[8]
    raw, g = space[2], np.zeros(4, np.float32)
    for begin in range(part * BLOCK, origins.shape[0], parts * BLOCK):
        for m in range(begin, min(begin + BLOCK, origins.shape[0])):
            behind = ZERO
            for s in range(places.shape[1] - 1, -1, -1):
                light = before[m, s]
                if light == ZERO:
                    continue
                t, weight = places[m, s], weights[m, s]
                x = origins[m, 0] + t * directions[m, 0]
                y = origins[m, 1] + t * directions[m, 1]
                z = origins[m, 2] + t * directions[m, 2]
                _logits(field, space, x, y, z)
                q = g_out[m, 3] + g_out[m, 4] * t
                for c in range(3):
                    color = _sigmoid(raw[c + 1])
                    q += g_out[m, c] * color
                    g[c + 1] = weight * g_out[m, c] * color * (ONE - color)
                extra = ZERO
                if per_sample:
                    q += g_weights[m, s]
                    extra = g_sigmas[m, s]
                g_sigma = (ends[m, s] - starts[m, s]) * ((light - weight) * q - behind) + extra
                g[0] = g_sigma * scene[1] * _sigmoid(raw[0])
                behind += weight * q
                _back(field, grad, space, g)
