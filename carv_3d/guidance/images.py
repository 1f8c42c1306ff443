"""Images at the size that a model takes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resized(images: Tensor, size: int | tuple[int, int], antialias: bool = False) -> Tensor:
    """Images or latents at another size, bilinear; what has that size already is returned as it is.

    Args:
        images: (B, C, H, W), differentiable.
        size: (height, width), or the pixels of each side.
        antialias: low-pass first where it becomes smaller.

    Returns:
        (B, C, height, width).
    """
    both = (size, size) if isinstance(size, int) else size
    if images.shape[-2:] == both:
        return images
    return F.interpolate(images, both, mode="bilinear", align_corners=False, antialias=antialias)
