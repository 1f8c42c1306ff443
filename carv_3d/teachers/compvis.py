"""Latent diffusion in the code of CompVis, from which Zero123 and MVDream come, as a frozen teacher.

The network is the host's: whatever has `apply_model`, `first_stage_model` and `decode_first_stage`. Nothing of it is
imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from carv_3d.core.checks import check_numbers
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError, first_line
from carv_3d.teachers.denoiser import Denoiser
from carv_3d.teachers.inputs import check_images


class CompVisTeacher(Denoiser):
    """A `carv_3d.teachers.base.Teacher` but for the condition, which a subclass gives to the network."""

    def __init__(self, model: Any, schedule: NoiseSchedule, image_size: int, name: str = "") -> None:
        """A model that is already on its device; it is frozen.

        Args:
            model: of the interface of CompVis' LatentDiffusion; it predicts noise.
            schedule: of its training.
            image_size: the side of images that it was trained at.
            name: for messages.

        Raises:
            CarvError: its autoencoder cannot be run on such images.
        """
        super().__init__(model, schedule, "epsilon", name)
        self.image_size = image_size
        self._scaling = float(model.scale_factor)
        try:
            with torch.no_grad():
                mean, _ = self._posterior(torch.zeros(1, 3, image_size, image_size, device=self.device))
        except (RuntimeError, TypeError, ValueError) as error:
            raise CarvError(
                f"the autoencoder of {name or 'this model'} cannot be run on images of {image_size} pixels a side "
                f"({first_line(error)}): name the configuration that goes with its weights."
            ) from error
        self.latent_channels, self.latent_size = int(mean.shape[1]), int(mean.shape[-1])

    def _posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, C, h, w) as the autoencoder gives them, unscaled, in its dtype."""
        with torch.autocast(self.device.type, enabled=False):
            posterior = self.network.first_stage_model.encode(images.to(self.dtype) * 2 - 1)
        return posterior.mean, posterior.std

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, C, h, w) of scaled latents, both differentiable in images (B, 3, H, W)."""
        check_images(images)
        mean, std = self._posterior(images)
        return (mean * self._scaling).to(images.dtype), (std * self._scaling).to(images.dtype)

    def encode(self, images: Tensor, generator: torch.Generator | None = None, sample: bool = True) -> Tensor:
        """Images as scaled latents.

        Args:
            images: (B, 3, H, W) in [0, 1], differentiable.
            generator: of the posterior's noise; torch's global one if None.
            sample: one posterior sample per image, instead of the posterior's mode.

        Returns:
            (B, C, h, w), in images' dtype.
        """
        mean, std = self.posterior(images)
        if not sample:
            return mean
        where = mean.device if generator is None else generator.device
        xi = torch.randn(mean.shape, generator=generator, device=where, dtype=mean.dtype)
        return mean + std * xi.to(mean.device)

    def decode(self, latents: Tensor, clamp: bool = True) -> Tensor:
        """Scaled latents as images.

        Args:
            latents: (B, C, h, w), differentiable.
            clamp: cut to [0, 1], where the gradient is zero outside.

        Returns:
            (B, 3, H, W), in latents' dtype.

        Raises:
            CarvError: the decoder was left out.
        """
        if not hasattr(self.network.first_stage_model, "decoder"):
            raise CarvError(f"{self.name or 'this model'} was loaded without its decoder: set vram_O to false.")
        check_numbers("latents", latents, "(B, C, h, w)")
        with torch.autocast(self.device.type, enabled=False):
            images = self.network.decode_first_stage(latents.to(self.dtype))
        images = (images * 0.5 + 0.5).to(latents.dtype)
        return images.clamp(0, 1) if clamp else images

    def text_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """Raises CarvError: the condition is made elsewhere."""
        raise CarvError(f"{self.name or 'this model'} encodes no text here: give it its condition.")

    def predict(self, z_t: Tensor, t: Tensor, text_emb: Tensor, *more: Tensor) -> Tensor:
        """The noise that the network predicts, in z_t's dtype; under autocast where the caller is, as in threestudio.

        Args:
            z_t: (N, C, h, w).
            t: (N,) integers.
            text_emb: (N, L, D), the condition.
            *more: of teachers whose `conditions` take more.

        Returns:
            (N, C, h, w).
        """
        prediction = self.run_network(z_t.to(self.dtype), t, self.conditions(text_emb, *more))
        return prediction.to(z_t.dtype)

    def run_network(self, given: Tensor, time: Tensor, conditions: dict[str, Any]) -> Tensor:
        """The network's own output.

        Args:
            given: (N, C, h, w).
            time: (N,).
            conditions: `apply_model`'s.

        Returns:
            (N, C, h, w).
        """
        prediction: Tensor = self.network.apply_model(given, time, conditions)
        return prediction
