"""Zero123 and Stable Zero123 in CompVis' format as frozen teachers: new views of the object in one image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.teachers.compvis import CompVisTeacher
from carv_3d.teachers.view_condition import ImageCamera, split_condition, with_image


class Zero123Teacher(CompVisTeacher):
    """A `carv_3d.teachers.base.Teacher` whose condition is `condition`'s (arXiv 2303.11328)."""

    def __init__(
        self, model: Any, schedule: NoiseSchedule, image: Tensor, camera: ImageCamera, on_sphere: bool = False,
        name: str = "",
    ) -> None:  # fmt: skip
        """A model and the image that it shows other views of.

        Args:
            model: see `CompVisTeacher`; it has `get_learned_conditioning` and `cc_projection` as well.
            schedule: of its training.
            image: (1, 3, H, W) in [0, 1], at the size of its training.
            camera: where the image was taken from.
            on_sphere: the camera's move as Stable Zero123 takes it.
            name: for messages.

        Raises:
            CarvError: its autoencoder cannot be run.
        """
        super().__init__(model, schedule, image.shape[-1], name)
        self.camera, self.on_sphere = camera, on_sphere
        image = image.to(self.device, self.dtype)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            self.image_latents = self._posterior(image)[0]  # unscaled, as it was trained
            self.image_embedding: Tensor = model.get_learned_conditioning(image * 2 - 1)  # (1, 1, D)

    @torch.no_grad()
    def condition(self, elevation: Tensor, azimuth: Tensor, distances: Tensor) -> Tensor:
        """What goes with renders from these cameras; `without_image` makes it that of none.

        Args:
            elevation: (B,) in degrees.
            azimuth: (B,) in degrees.
            distances: (B,).

        Returns:
            (B, 1, D + 1), see `view_condition`.
        """
        views = [x.to(self.device, self.dtype) for x in (elevation, azimuth, distances)]
        move = self.camera.move_on_sphere(*views[:2]) if self.on_sphere else self.camera.move(*views)
        both = torch.cat([self.image_embedding.expand(len(move), -1, -1), move[:, None]], dim=-1)
        with torch.autocast(self.device.type, enabled=False):
            return with_image(self.network.cc_projection(both))

    def conditions(self, text_emb: Tensor) -> dict[str, Any]:
        """The network's arguments for conditions (N, 1, D + 1)."""
        embedding, latents = split_condition(text_emb.to(self.dtype), self.image_latents)
        return {"c_crossattn": [embedding], "c_concat": [latents]}
