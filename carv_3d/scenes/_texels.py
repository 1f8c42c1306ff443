"""The compiled loop of `texture`: which triangle covers which texel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(cache=True)
def texels(uv: Any, faces: Any, size: int) -> Any:
    """Of each texel (size, size): the face that covers its center, -1 without one, and the corners' weights.

    uv: (V, 2) in texels, centers at whole numbers.
    """
    face = np.full((size, size), -1, np.int64)
    weights = np.zeros((size, size, 3), np.float64)
    for f in range(faces.shape[0]):
        a, b, c = uv[faces[f, 0]], uv[faces[f, 1]], uv[faces[f, 2]]
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if area == 0:
            continue
        left = max(0, int(np.floor(min(a[0], b[0], c[0]))))
        right = min(size - 1, int(np.ceil(max(a[0], b[0], c[0]))))
        low, high = max(0, int(np.floor(min(a[1], b[1], c[1])))), min(size - 1, int(np.ceil(max(a[1], b[1], c[1]))))
        for y in range(low, high + 1):
            for x in range(left, right + 1):
                v = ((x - a[0]) * (c[1] - a[1]) - (y - a[1]) * (c[0] - a[0])) / area
                w = ((b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])) / area
                u = 1 - v - w
                if u >= 0 and v >= 0 and w >= 0:
                    face[y, x] = f
                    weights[y, x, 0], weights[y, x, 1], weights[y, x, 2] = u, v, w
    return face, weights
