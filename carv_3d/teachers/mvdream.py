"""MVDream as a frozen teacher: several views of one object, denoised together (arXiv 2308.16512).

The V views of an object are one upstream sample, which has one timestep. They stand side by side in the channels: to
the estimator a sample is (3 V, H, W) as images and (C V, h, w) as latents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError
from carv_3d.teachers.compvis import CompVisTeacher
from carv_3d.teachers.xl_text import pack, unpack

CAMERA = 16


def side_by_side(x: Tensor, views: int) -> Tensor:
    """Views (R V, C, ...) as samples (R, V C, ...)."""
    return x.unflatten(0, (-1, views)).flatten(1, 2)


def one_by_one(x: Tensor, views: int) -> Tensor:
    """Samples (R, V C, ...) as views (R V, C, ...)."""
    return x.unflatten(1, (views, -1)).flatten(0, 1)


def normalized_cameras(c2w: Tensor) -> Tensor:
    """Cameras to world (B, 4, 4) as MVDream takes them: at distance 1 from the origin, (B, 16)."""
    place = c2w[:, :3, 3:]
    place = place / (place.norm(dim=1, keepdim=True) + 1e-8)
    return torch.cat([torch.cat([c2w[:, :3, :3], place], dim=2), c2w[:, 3:]], dim=1).flatten(1)


class MVDreamTeacher(CompVisTeacher):
    """A `carv_3d.teachers.base.Teacher` whose samples are V views, and whose condition is `condition`'s."""

    def __init__(self, model: Any, image_size: int, views: int = 4, name: str = "") -> None:
        """A model that is already on its device.

        Args:
            model: of the interface of MVDream's LatentDiffusionInterface; it has its schedule.
            image_size: the side of a view.
            views: V.
            name: for messages.

        Raises:
            CarvError: its autoencoder cannot be run on such images.
        """
        super().__init__(model, NoiseSchedule(model.alphas_cumprod), image_size, name)
        self.views, self.image_channels = views, 3 * views
        self.latent_channels *= views

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (R, C V, h, w) of scaled latents, differentiable in images (R, 3 V, H, W)."""
        mean, std = super().posterior(one_by_one(images, self.views))
        return side_by_side(mean, self.views), side_by_side(std, self.views)

    def decode(self, latents: Tensor, clamp: bool = True) -> Tensor:
        """Scaled latents as images.

        Args:
            latents: (R, C V, h, w), differentiable.
            clamp: cut to [0, 1], where the gradient is zero outside.

        Returns:
            (R, 3 V, H, W).
        """
        return side_by_side(super().decode(one_by_one(latents, self.views), clamp), self.views)

    def condition(self, text: Tensor, camera: Tensor) -> Tensor:
        """What goes with the views of R objects: each view's text, and its camera as one more row of it.

        Args:
            text: (R V, L, D).
            camera: (R V, 16).

        Returns:
            (R, V (L + 1), D).

        Raises:
            CarvError: a text narrower than a camera.
        """
        if text.shape[-1] < CAMERA:
            raise CarvError(
                f"the text embeddings are {text.shape[-1]} wide, which is not MVDream's: take its encoder's."
            )
        return side_by_side(pack(text, camera.to(text)), self.views)

    def conditions(self, text_emb: Tensor) -> dict[str, Any]:
        """The network's arguments for conditions (N, V (L + 1), D)."""
        text, camera = unpack(one_by_one(text_emb, self.views), text_emb.shape[-1], CAMERA)
        return {"context": text.to(self.dtype), "camera": camera.to(self.dtype), "num_frames": self.views}

    def run_network(self, given: Tensor, time: Tensor, conditions: dict[str, Any]) -> Tensor:
        """The network's own output.

        Args:
            given: (N, C V, h, w).
            time: (N,), the same for the views of a sample.
            conditions: of all views.

        Returns:
            (N, C V, h, w).
        """
        each = super().run_network(one_by_one(given, self.views), time.repeat_interleave(self.views), conditions)
        return side_by_side(each, self.views)
