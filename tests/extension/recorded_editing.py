"""ControlNet's and InstructPix2Pix's cases: models, images and draws, for `record_editing.py` and the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import recorded_parity as recorded
import torch
from safetensors.torch import load_file, save_file
from small_editing import build_controlnet, build_pix2pix, build_sd8
from torch import Tensor

CONTROLNET, PIX2PIX = "stable-diffusion-controlnet-guidance", "stable-diffusion-instructpix2pix-guidance"
HEIGHT, WIDTH = 20, 36  # of renders; 16 and 32 are encoded
SDS = {"use_sds": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "sds": SDS,
    "other scales": {**SDS, "guidance_scale": 3.0, "condition_scale": 0.7},
    "clipped": {**SDS, "grad_clip": 0.2},
    "clipped on a schedule": {**SDS, "grad_clip": [0, 0.1, 0.5, 1000]},
    "annealed": {**SDS, "min_step_percent": [0, 0.5, 0.1, 1000], "max_step_percent": [0.9, 0.6, 1000]},
    "fixed size": {**SDS, "fixed_size": 24},
    "edit": {},
    "edit, other scales and size": {"guidance_scale": 3.0, "condition_scale": 0.7, "fixed_size": 16},
    "edit, in five steps": {"diffusion_steps": 5, "min_step_percent": 0.5},
}
EDGES = {
    "canny": {**SDS, "control_type": "canny"},
    "canny, other bounds": {**SDS, "control_type": "canny", "canny_lower_bound": 5, "canny_upper_bound": 20},
}
"""ControlNet's own cases."""


class Negative:
    """In place of controlnet_aux's detector of normals: an image's negative, with the sides of a larger detector."""

    def __init__(self) -> None:
        self.model = torch.nn.Identity()

    @classmethod
    def from_pretrained(cls, name: str) -> Negative:
        assert name == "lllyasviel/Annotators"
        return cls()

    def __call__(self, pixels: Any) -> Any:
        return 255 - pixels.repeat(2, 0).repeat(2, 1)


def write_models(folder: Path) -> dict[str, Path]:
    """Each model by name, with the weights of `fill`."""
    models = {"sd": build_sd8(folder / "sd"), "pix2pix": build_pix2pix(folder / "pix2pix")}
    for model in models.values():
        recorded.fill_weights(model)
    build_controlnet(folder / "controlnet")
    recorded.fill_weights(folder, ("controlnet",))
    file = recorded.weights_file(folder, "controlnet")  # whose layers at the ends get more, so that the image counts
    own = {key: value * (4 if key.startswith("controlnet") else 1) for key, value in load_file(file).items()}
    save_file(own, file, {"format": "pt"})
    return {**models, "controlnet": folder / "controlnet"}


def weights(models: dict[str, Path], kind: str) -> list[str]:
    """SHA-256 of the weights that a type's guidance reads."""
    if kind == PIX2PIX:
        return [recorded.fingerprint(models["pix2pix"])]
    return [recorded.fingerprint(models["sd"]), recorded.fingerprint(models["controlnet"].parent, ("controlnet",))]


def images() -> tuple[Tensor, Tensor]:
    """A render and the image that goes with it, (1, H, W, 3) each; the second has edges."""
    render, cond = ((recorded.fill(name, 1, HEIGHT, WIDTH, 3) + 1) / 2 for name in ("render", "cond_rgb"))
    cond[:, 5:15, 8:24] *= 0.1
    return render.requires_grad_(), cond


def draws(case: str, options: dict[str, Any], low: int, high: int) -> tuple[Tensor, Tensor, Tensor]:
    """t (1,), eps and the posterior's noise (1, 4, h, w) of a case."""
    side = options.get("fixed_size", 0) // 8
    shape = (1, 4, side or HEIGHT // 8, side or WIDTH // 8)
    return recorded.timesteps(case, low, high, 1), recorded.gaussian("eps", *shape), recorded.gaussian("z", *shape)


class Prompts:
    """What threestudio's prompt processor gave for no view in particular."""

    use_perp_neg = False

    def __init__(self, text: Tensor) -> None:
        self._text = text

    def get_text_embeddings(self, *views_and_choice: Any) -> Tensor:
        """(2, L, D), text first."""
        *views, by_view = views_and_choice
        assert not by_view
        assert [view.tolist() for view in views] == [[0.0]] * 3
        return self._text
