"""What threestudio's Zero123 guidances gave for a tiny model (tests/compvis_models.py): the inputs of each case.

`record_zero123.py` writes the files in `recorded/`; `test_recorded_zero123.py` reads them without it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import recorded_parity as recorded
from torch import Tensor

TENSORS, FACTS = recorded.FOLDER / "zero123.safetensors", recorded.FOLDER / "zero123.json"
KINDS = ("zero123-guidance", "stable-zero123-guidance")
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "scale": {"guidance_scale": 3.0},
    "another camera": {"cond_elevation_deg": 20.0, "cond_azimuth_deg": -40.0, "cond_camera_distance": 1.5},
    "clipped": {"grad_clip": 0.5},
    "clipped on a schedule": {"grad_clip": [0, 0.25, 1.0, 1000]},
    "annealed": {"min_step_percent": [0, 0.5, 0.1, 1000], "max_step_percent": [0, 0.9, 0.6, 1000]},
    "with decoder": {"vram_O": False},
    "half": {"half_precision_weights": True},
}
CASES = [(kind, name, "images") for kind in KINDS for name in OPTIONS]
CASES += [(kind, name, "latents") for kind in KINDS for name in ("defaults", "clipped")]


AREAS = [(48, 48), (32, 32), (23, 17), (9, 5), (12, 40), (16, 16), (33, 16)]
"""Sizes of images that OpenCV has resized to 16 x 16."""


def pixels(height: int, width: int) -> np.ndarray:
    """An image (height, width, 4) in 0 .. 255."""
    values = (recorded.fill(f"area {height} {width}", height, width, 4).numpy() + 1) * 127.99
    return values.astype(np.uint8)


def case_name(kind: str, name: str, given: str) -> str:
    """The key of a case."""
    return f"{kind}, {name}, {given}"


def noise(n: int) -> tuple[Tensor, Tensor]:
    """The noise and the posterior's of n renders, (n, 4, 8, 8) each."""
    return recorded.gaussian("eps", n, 4, 8, 8), recorded.gaussian("posterior", n, 4, 8, 8)


def render(given: str) -> Tensor:
    """What a case gives as rendered, at another size than the model's."""
    return recorded.render(given)


def directions() -> Tensor:
    """Seven directions of gradients of two renders' latents, (7, 512)."""
    return recorded.fill("directions", 7, 2 * 4 * 8 * 8)
