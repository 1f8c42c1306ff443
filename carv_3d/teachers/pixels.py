"""In place of a VAE: pixels that are latents themselves, and posteriors without noise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class Point:
    """The posterior of an encoder that gives one value for an image, (B, C, h, w)."""

    def __init__(self, value: Tensor) -> None:
        """The distribution at `value`."""
        self.mean, self.std = value, torch.zeros_like(value)

    def mode(self) -> Tensor:
        """The value."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """The value; no noise is drawn."""
        return self.mean


class Pixels(torch.nn.Module):
    """The VAE of a model of pixels: latents are the image itself in [-1, 1], (B, 3, h, w)."""

    def __init__(self, sample_size: int) -> None:
        """For images of this side."""
        from diffusers.configuration_utils import FrozenDict

        super().__init__()
        self.config: Any = FrozenDict(
            latent_channels=3, block_out_channels=(3,), scaling_factor=1.0, sample_size=sample_size
        )

    def encode(self, x: Tensor) -> Any:
        """(B, 3, h, w) -> the same, as diffusers' autoencoders give it."""
        return SimpleNamespace(latent=x)

    def decode(self, z: Tensor) -> Any:
        """(B, 3, h, w) -> the same, as diffusers' autoencoders give it."""
        return SimpleNamespace(sample=z)
