"""Images made smaller or larger as OpenCV's INTER_AREA does it, without OpenCV."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BITS = 11  # of OpenCV's fixed-point weights


def area_resized(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The image at another size: the mean over the area of each new pixel.

    Where a side grows, OpenCV interpolates both sides between neighbors instead, with weights of 11 bits, as here.

    Args:
        image: (H, W, C).
        size: of both sides.

    Returns:
        (size, size, C).
    """
    H, W = image.shape[:2]
    if (size, size) == (H, W):
        return image.copy()
    if size > min(H, W):
        return _between_neighbors(image, size)
    rows, columns = _coverage(H, size), _coverage(W, size)
    mean = np.einsum("ih,hwc,jw->ijc", rows, image.astype(np.float64), columns, optimize=True)
    halves_up = (2 * size, 2 * size) == (H, W)  # OpenCV has a path of its own for that
    rounded = np.floor(mean + 0.5) if halves_up else np.rint(mean.astype(np.float32))
    return rounded.clip(0, 255).astype(np.uint8)


def _coverage(old: int, new: int) -> NDArray[np.float64]:
    """(new, old): which share of each new pixel each old one covers."""
    edges = np.arange(new + 1) * (old / new)
    pixels = np.arange(old)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights: NDArray[np.float64] = covered.clip(0) * (new / old)
    return weights


def _between_neighbors(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """OpenCV's interpolation in whole numbers, its rounding included."""
    (top, bottom, a), (left, right, b) = (_neighbors(old, size) for old in image.shape[:2])
    pixels = image.astype(np.int64)
    across = pixels[:, left] * b[0][:, None] + pixels[:, right] * b[1][:, None]
    above, below = across[top] >> 4, across[bottom] >> 4
    a = a[:, :, None, None]
    mixed = ((above * a[0]) >> 16) + ((below * a[1]) >> 16)
    return ((mixed + 2) >> 2).clip(0, 255).astype(np.uint8)


def _neighbors(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The two old pixels of each new one, and their weights (2, new)."""
    at = np.arange(new)
    first = np.floor(at * (old / new)).astype(np.int64)
    share = ((at + 1) - (first + 1) * (new / old)).astype(np.float32)
    share = np.where(share <= 0, np.float32(0), share - np.floor(share))
    share = np.where(first >= old - 1, np.float32(0), share)
    weights = np.stack([np.rint((1 - share) * 2**BITS), np.rint(share * 2**BITS)]).astype(np.int64)
    return first.clip(0, old - 1), (first + 1).clip(0, old - 1), weights
