"""The true shapes behind carv-tiny's prompts, and how near an asset comes to them: silhouette IoU and PSNR.

16 views of 64 by 64 (8 azimuths at elevations 5 and 30), on white, in the pose as it came.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from carv_3d.scenes.cameras import CameraOptions, Cameras, orbit

SIZE, VIEWS, ELEVATIONS = 64, 16, (5.0, 30.0)
Images = NDArray[Any]


def scoring_cameras(data: CameraOptions) -> Cameras:
    """The cameras that assets are scored from, at the evaluation's distance and field of view."""
    return orbit(VIEWS, elevation=ELEVATIONS, distance=data.eval_camera_distance, fovy=data.eval_fovy_deg)


def true_views(
    objects: Sequence[str], color: str, data: CameraOptions, material: str = "plain"
) -> tuple[Images, Images]:
    """Renders of the true objects: `rgb (N, 16, 64, 64, 3)` and coverage `alpha (N, 16, 64, 64)`, both uint8."""
    from carv_3d.tiny.render import Shot, render

    cameras = scoring_cameras(data)
    shots = [
        Shot(obj, color, material, e, a, data.eval_camera_distance, data.eval_fovy_deg)
        for obj in objects for e, a in zip(cameras.elevation.tolist(), cameras.azimuth.tolist())
    ]  # fmt: skip
    rgb, alpha = render(shots, SIZE, threads=1)
    shape = (len(objects), VIEWS, SIZE, SIZE)
    return rgb.reshape(*shape, 3), alpha.reshape(shape)


def scoring_views(host: Any) -> tuple[Tensor, Tensor]:
    """A `TextTo3D`'s images (16, 64, 64, 3) in [0, 1] on white, and its opacity (16, 64, 64), from those cameras."""
    white = torch.ones(3, device=host.device)
    rgb, opacity, _ = host.renderer.render(scoring_cameras(host.config.data), SIZE, SIZE, white)
    return rgb, opacity[..., 0]


def psnr(a: Images, b: Images) -> float:
    """Peak signal-to-noise ratio of images in [0, 1], in dB; 100 where they are equal."""
    return float(-10 * math.log10(max(np.square(a - b).mean(), 1e-10)))


def iou(a: Images, b: Images) -> float:
    """Intersection over union of two boolean arrays, pooled over all views; 0 where both are empty."""
    return float((a & b).sum() / max(1, (a | b).sum()))


@dataclass
class TrueShape:
    """The true object of a prompt.

    Attributes:
        rgb: (16, 64, 64, 3) in [0, 1], None where the prompt names no color.
        solid: (16, 64, 64), where it is.
    """

    rgb: Images | None
    solid: Images

    @classmethod
    def from_prompt(cls, prompt: str, data: CameraOptions) -> TrueShape:
        """CarvError where the prompt is none of carv-tiny's."""
        from carv_3d.tiny.vocabulary import parse

        obj, color, material = parse(prompt)
        rgb, alpha = true_views([obj], color or "red", data, material)
        return cls(rgb[0] / 255.0 if color else None, alpha[0] > 127)

    def score(self, rgb: Tensor, opacity: Tensor) -> dict[str, float]:
        """The IoU and PSNR of images as `scoring_views` gives them."""
        scores = {"iou": iou(opacity.detach().cpu().numpy() > 0.5, self.solid)}
        if self.rgb is not None:
            scores["psnr"] = psnr(rgb.detach().cpu().numpy(), self.rgb)
        return scores
