"""Images at the size that a model takes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resized(images: Tensor, size: int, antialias: bool = False) -> Tensor:
    """Images or latents (B, C, H, W) at (B, C, size, size), bilinear, differentiable.

    What has that size already is returned as it is. antialias: low-pass first where it becomes smaller.
    """
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=antialias)
