"""InstructPix2Pix (arXiv 2211.09800): a Stable Diffusion that edits an image, which it is given next to z_t."""

from __future__ import annotations

import torch
from torch import Tensor

from carv_3d.teachers.families import INSTRUCT_PIX2PIX
from carv_3d.teachers.image_given import ImageGiven, ImageInChannels
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher


class InstructPix2PixTeacher(ImageInChannels, ImageGiven, StableDiffusionTeacher):
    """A teacher whose `eps_hat(z_t, t, text, image)` takes an image as latents (N, C, h, w), zeros for none."""

    family = INSTRUCT_PIX2PIX
    default_model = "timbrooks/instruct-pix2pix"

    @torch.no_grad()
    def image_latents(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] as the UNet is given them: the posterior's mode, unscaled, (B, C, h, w)."""
        latents: Tensor = self._posterior(images).mode()
        return latents.to(images.dtype)
