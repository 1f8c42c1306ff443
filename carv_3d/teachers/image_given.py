"""What the teachers share that are given an image next to z_t and the text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.teachers.denoiser import Denoiser


class ImageGiven(Denoiser):
    """A teacher whose `eps_hat(z_t, t, text, image)` takes an image; `run_network` finds it in the conditions."""

    def conditions(self, text_emb: Tensor, image: Tensor | None = None) -> dict[str, Any]:
        """The network's arguments for text (N, L, D), and the image (N, ...). Raises CarvError without an image."""
        if image is None:
            raise CarvError("this model is given an image next to the text: Conditioning(..., image_cond=...).")
        return {**super().conditions(text_emb), "image": image.to(self.dtype)}


class ImageInChannels(Denoiser):
    """A network that takes the image's latents, `conditions`' `image`, as further channels of its input."""

    def run_network(self, given: Tensor, time: Tensor, conditions: dict[str, Any]) -> Tensor:
        """The network's own output.

        Args:
            given: (N, C, h, w).
            time: (N,).
            conditions: of `conditions`; image is (N, C', h, w).

        Returns:
            (N, C, h, w).
        """
        rest = {name: value for name, value in conditions.items() if name != "image"}
        return super().run_network(torch.cat([given, conditions["image"]], dim=1), time, rest)
