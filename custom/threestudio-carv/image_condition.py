"""What the guidances that are given one image of the object share: their options, and what those rule out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from carv_3d.core.options import Options, option
from carv_3d.errors import CarvError
from carv_3d.guidance.options import GuidanceOptions, ModelOptions
from carv_3d.objectives.table import OBJECTIVES
from carv_3d.teachers.view_condition import ImageCamera

LARGE = 1e6


@dataclass(frozen=True, kw_only=True)
class ImageOptions(Options):
    """The image and its camera, under threestudio's names."""

    cond_image_path: str = option("load/images/hamburger_rgba.png", "An RGBA image of the object.")
    cond_elevation_deg: float = option(0.0, "The image's camera.", least=-LARGE, most=LARGE)
    cond_azimuth_deg: float = option(0.0, "The same.", least=-LARGE, most=LARGE)
    cond_camera_distance: float = option(1.2, "The same.", least=-LARGE, most=LARGE)

    @property
    def camera(self) -> ImageCamera:
        """Where the image was taken from."""
        return ImageCamera(self.cond_elevation_deg, self.cond_azimuth_deg, self.cond_camera_distance)


def check_without_text(options: GuidanceOptions) -> None:
    """Raises CarvError for an objective that needs a prompt."""
    if "negative" in OBJECTIVES[options.objective].needs:
        raise CarvError(
            f"the objective {options.objective} needs a negative prompt, and this model reads none: take sds."
        )


def check_no_model_files(options: ModelOptions, what: str) -> None:
    """Raises CarvError for files that go with a diffusers folder."""
    given: dict[str, Any] = {name: value for name, value in options.model_files.items() if value}
    if given:
        raise CarvError(f"{next(iter(given))} is for models in diffusers' format, and {what}: leave it out.")
