"""What a frozen diffusion model offers to the estimators.

A *teacher* turns images into latents and latents into noise predictions. It knows no
renderer, no estimator and no host. Everything here speaks of `eps_hat(z_t, t, y)`, the noise
prediction of arXiv 2605.21489: a model that predicts `v` converts it before it returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from carv_3d.core.schedule import NoiseSchedule


@runtime_checkable
class Teacher(Protocol):
    """The protocol. A batch has any `N` samples: the estimator lays renders times draws along it.

    Attributes:
        schedule: alpha_t and sigma_t of the model's own training, on `device`.
        latent_channels: latents are (N, latent_channels, latent_size, latent_size).
        latent_size: see there.
        image_size: images are (B, 3, image_size, image_size) in [0, 1].
        device: where the model is.
        dtype: what it computes in; inputs and outputs of the methods keep the caller's dtype (float32 as a rule),
            whatever `dtype` is.
    """

    schedule: NoiseSchedule
    latent_channels: int
    latent_size: int
    image_size: int
    device: torch.device
    dtype: torch.dtype

    def encode(self, images: Tensor, generator: torch.Generator | None = None, sample: bool = True) -> Tensor:
        """Images as scaled latents.

        Args:
            images: (B, 3, H, W) in [0, 1], differentiable.
            generator: of the posterior's noise; torch's global one if None.
            sample: draw once from the posterior of each image (noise that counts as upstream), instead of its mode.

        Returns:
            (B, C, h, w).
        """
        ...

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The distribution that `encode` samples: mean and standard deviation (B, C, h, w), both differentiable."""
        ...

    def decode(self, latents: Tensor, clamp: bool = True) -> Tensor:
        """Scaled latents as images.

        Args:
            latents: (B, C, h, w), differentiable.
            clamp: cut to [0, 1], where the gradient is zero outside.

        Returns:
            (B, 3, H, W).
        """
        ...

    def text_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> (B, L, D), without gradient."""
        ...

    def eps_hat(self, z_t: Tensor, t: Tensor, text_emb: Tensor) -> Tensor:
        """The noise prediction without guidance.

        Args:
            z_t: (N, C, h, w).
            t: (N,) integers.
            text_emb: (N, L, D).

        Returns:
            (N, C, h, w).
        """
        ...
