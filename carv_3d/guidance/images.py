"""Images at the size that a model takes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resized(images: Tensor, height: int, width: int | None = None, antialias: bool = False) -> Tensor:
    """Images or latents (B, C, H, W) at height x width (a square unless given), bilinear, differentiable.

    What has that size already is returned as it is. antialias: low-pass first where it becomes smaller.
    """
    size = (height, height if width is None else width)
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=antialias)
