"""An image of an object, and the camera's move away from it: the condition of Zero123 (arXiv 2303.11328).

It travels as the tensor that other teachers have for text: an embedding, and in the last column 1 for the image and 0
for none. The teacher multiplies the image's latents by it, so that guidance needs nothing of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.io.files import MissingFileError, expanded
from carv_3d.io.images import opened_image
from carv_3d.io.resample import area_resized

FIX = "name an RGBA image of the object, with the background transparent, as"


class ImageCamera(NamedTuple):
    """Where the image was taken from: two angles in degrees and a distance."""

    elevation: float
    azimuth: float
    distance: float

    def move(self, elevation: Tensor, azimuth: Tensor, distances: Tensor) -> Tensor:
        """The way from here to other cameras, as Zero123 was trained on it.

        Args:
            elevation: (B,) in degrees.
            azimuth: (B,) in degrees.
            distances: (B,).

        Returns:
            (B, 4): the polar angle's change in radians, sine and cosine of the azimuth's, the distance's.
        """
        return self._move(elevation, azimuth, distances - self.distance)

    def move_on_sphere(self, elevation: Tensor, azimuth: Tensor) -> Tensor:
        """The same as Stable Zero123 takes it: in the distance's place the image's own polar angle in radians.

        Args:
            elevation: (B,) in degrees.
            azimuth: (B,) in degrees.

        Returns:
            (B, 4).
        """
        return self._move(elevation, azimuth, torch.deg2rad(90 - torch.full_like(elevation, self.elevation)))

    def _move(self, elevation: Tensor, azimuth: Tensor, last: Tensor) -> Tensor:
        turn = torch.deg2rad(azimuth - self.azimuth)
        polar = torch.deg2rad((90 - elevation) - (90 - self.elevation))
        return torch.stack([polar, turn.sin(), turn.cos(), last], dim=-1)


def with_image(embedding: Tensor) -> Tensor:
    """Embeddings (B, L, D) as conditions (B, L, D + 1) with the image."""
    return F.pad(embedding, (0, 1), value=1.0)


def without_image(condition: Tensor) -> Tensor:
    """What takes the place of conditions (B, L, D + 1) for none: zeros."""
    return torch.zeros_like(condition)


def split_condition(condition: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    """The parts of conditions (N, L, D + 1).

    Args:
        condition: see the module.
        latents: the image's, (1, C, h, w).

    Returns:
        The embeddings (N, L, D), and the latents (N, C, h, w), zeros where there is no image.
    """
    return condition[..., :-1], condition[:, 0, -1].view(-1, 1, 1, 1).to(latents) * latents


def read_rgba(path: str, needs_alpha: bool = True, name: str = "cond_image_path") -> np.ndarray:
    """The pixels of an image of an object before a transparent background.

    Args:
        path: of a PNG, JPEG, WebP or BMP.
        needs_alpha: refuse an image without transparency.
        name: of the option that gives the path.

    Returns:
        (H, W, 4) in 0 .. 255.

    Raises:
        CarvError: no such file, no image, or one without transparency.
    """
    if not path:
        raise CarvError(f"{name} is empty; {FIX} {name}.")
    try:
        with opened_image(expanded(path)) as image:
            if needs_alpha and "A" not in image.getbands() and "transparency" not in image.info:
                raise CarvError(f"{path} has no transparency, so the object in it has no outline; {FIX} {name}.")
            return np.asarray(image.convert("RGBA"))
    except MissingFileError:
        raise CarvError(f"{name} is {path!r}, and there is no such file; {FIX} {name}.") from None


def on_white(rgba: np.ndarray) -> Tensor:
    """Pixels (H, W, 4) in 0 .. 255 over white, as (1, 3, H, W) in [0, 1]."""
    pixels = torch.from_numpy(rgba.astype(np.float32) / 255.0).permute(2, 0, 1)[None]
    rgb, alpha = pixels[:, :3], pixels[:, 3:]
    return (rgb * alpha + (1 - alpha)).contiguous()


def condition_image(path: str | Path, size: int) -> Tensor:
    """The image over white at the size of the model, resized as by OpenCV's INTER_AREA.

    Args:
        path: see `read_rgba`.
        size: of both sides.

    Returns:
        (1, 3, size, size) in [0, 1].

    Raises:
        CarvError: as `read_rgba`.
    """
    return on_white(area_resized(read_rgba(str(path)), size))
