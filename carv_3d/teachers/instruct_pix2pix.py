"""InstructPix2Pix (arXiv 2211.09800): a Stable Diffusion that edits an image, which it is given next to z_t."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.teachers.controlnet import NEEDS_IMAGE
from carv_3d.teachers.families import INSTRUCT_PIX2PIX
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher


class InstructPix2PixTeacher(StableDiffusionTeacher):
    """A teacher whose `eps_hat(z_t, t, text, image)` takes an image as latents (N, C, h, w), zeros for none."""

    family = INSTRUCT_PIX2PIX
    default_model = "timbrooks/instruct-pix2pix"

    @torch.no_grad()
    def image_latents(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] as the UNet is given them: the posterior's mode, unscaled, (B, C, h, w)."""
        latents: Tensor = self._posterior(images).mode()
        return latents.to(images.dtype)

    def conditions(self, text_emb: Tensor, image: Tensor | None = None) -> dict[str, Any]:
        """The UNet's arguments for text (N, L, D) and images (N, C, h, w). Raises CarvError without an image."""
        if image is None:
            raise CarvError(NEEDS_IMAGE)
        return {**super().conditions(text_emb), "image": image.to(self.dtype)}

    def run_network(self, given: Tensor, time: Tensor, conditions: dict[str, Any]) -> Tensor:
        """The UNet's output for z_t and the image in its channels: (N, C, h, w), (N,) -> (N, C, h, w)."""
        text = {name: value for name, value in conditions.items() if name != "image"}
        return super().run_network(torch.cat([given, conditions["image"]], dim=1), time, text)
