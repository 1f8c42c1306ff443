"""The compiled loop of `texture` and `product_shot`: which triangle covers which pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(cache=True)
def rasterize(points: Any, depth: Any, faces: Any, height: int, width: int) -> Any:
    """Of each pixel (height, width): the nearest face over its center, -1 without one, and the corners' weights.

    points: (V, 2), column and row, pixels' centers at whole numbers. depth: (V,); the smaller is nearer, and of equal
    ones the first face stays.
    """
    face = np.full((height, width), -1, np.int64)
    nearest = np.full((height, width), np.inf)
    weights = np.zeros((height, width, 3), np.float64)
    for f in range(faces.shape[0]):
        i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
        a, b, c = points[i], points[j], points[k]
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if area == 0:
            continue
        left, right = max(0, int(np.floor(min(a[0], b[0], c[0])))), int(np.ceil(max(a[0], b[0], c[0])))
        top, bottom = max(0, int(np.floor(min(a[1], b[1], c[1])))), int(np.ceil(max(a[1], b[1], c[1])))
        for y in range(top, min(height - 1, bottom) + 1):
            for x in range(left, min(width - 1, right) + 1):
                v = ((x - a[0]) * (c[1] - a[1]) - (y - a[1]) * (c[0] - a[0])) / area
                w = ((b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])) / area
                u = 1 - v - w
                if u < 0 or v < 0 or w < 0:
                    continue
                z = u * depth[i] + v * depth[j] + w * depth[k]
                if z < nearest[y, x]:
                    nearest[y, x], face[y, x] = z, f
                    weights[y, x, 0], weights[y, x, 1], weights[y, x, 2] = u, v, w
    return face, weights
