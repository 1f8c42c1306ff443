"""The recorded cases of threestudio-mvdream's guidance; `record_mvdream.py` writes them."""

from __future__ import annotations

from typing import Any

import recorded_parity as recorded
import torch
from mvdream_models import WIDTH
from torch import Tensor

KIND = "mvdream-multiview-diffusion-guidance"
TENSORS, FACTS = recorded.FOLDER / "mvdream.safetensors", recorded.FOLDER / "mvdream.json"
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no rescaling": {"recon_std_rescale": 0.0},
    "all rescaled": {"recon_std_rescale": 1.0, "guidance_scale": 7.5},
    "sds": {"recon_loss": False},
    "two views": {"n_view": 2},
    "annealed": {"min_step_percent": [0, 0.5, 0.1, 1000], "max_step_percent": [0, 0.9, 0.6, 1000]},
    "by view": {"view_dependent_prompting": True},
}
CASES = [(name, given, 4) for name in OPTIONS for given in ("images",)]
CASES += [("defaults", "latents", 4), ("sds", "plain latents", 4), ("defaults", "images", 8), ("sds", "timestep", 4)]
"""(options, what is given, renders)."""


def case_name(name: str, given: str, renders: int) -> str:
    """The key of a case."""
    return f"{name}, {given}, {renders}"


def render(given: str, n: int) -> Tensor:
    """What a case gives as rendered; at another size than the model's, but for plain latents."""
    shape = {"latents": (6, 6, 4), "plain latents": (4, 8, 8)}.get(given, (12, 12, 3))
    return ((recorded.fill("render", n, *shape) + 1) / 2).requires_grad_()


def batch(given: str, n: int) -> dict[str, Any]:
    """What goes with n renders."""
    views = {name: recorded.fill(name, n) * 50 for name in ("elevation", "azimuth", "camera_distances")}
    more = {"latents": {"rgb_as_latents": True}, "plain latents": {"input_is_latent": True},
            "timestep": {"timestep": 321}}.get(given, {})  # fmt: skip
    return {**views, "c2w": recorded.fill("c2w", n, 4, 4), **more}


class Prompts:
    """Text embeddings that depend on the view, if asked for."""

    use_perp_neg = False

    def get_text_embeddings(self, elevation: Tensor, azimuth: Tensor, distances: Tensor, by_view: bool) -> Tensor:
        text, uncond = (recorded.fill(name, 1, 5, WIDTH).expand(len(azimuth), -1, -1) for name in ("text", "uncond"))
        return torch.cat([text + by_view * azimuth.view(-1, 1, 1) / 100, uncond])


def noise(n: int) -> tuple[Tensor, Tensor]:
    """The noise and the posterior's of n renders, (n, 4, 8, 8) each."""
    return recorded.gaussian("eps", n, 4, 8, 8), recorded.gaussian("posterior", n, 4, 8, 8)
