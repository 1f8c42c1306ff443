"""Images at the size that a model takes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resized(images: Tensor, size: int, antialias: bool = False) -> Tensor:
    """Images or latents at another size, bilinear; what has that size already is returned as it is.

    Args:
        images: (B, C, H, W), differentiable.
        size: pixels a side.
        antialias: low-pass first where it becomes smaller.

    Returns:
        (B, C, size, size).
    """
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=antialias)
