"""A tiny model with the interface of MVDream's `LatentDiffusionInterface`, in which views see each other.

It stands in for the package `mvdream`, in tests and in recordings alike: latents are 8 x 8, images 16 x 16. Weights are
`recorded_parity.fill`'s.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import recorded_parity as recorded
import torch
import yaml
from compvis_models import Autoencoder, Interface, UNet
from torch import Tensor, nn

WIDTH = 20  # of the text
NAME = "sd-v2.1-base-4view"
TARGET = "mvdream.ldm.interface.LatentDiffusionInterface"


class MultiViewUNet(UNet):
    """Noise predictions for (N V, 4, 8, 8), with cameras (N V, 16); each view sees the mean of its object's."""

    def __init__(self) -> None:
        super().__init__(4, WIDTH)
        self.camera, self.others = nn.Linear(16, 16), nn.Conv2d(4, 4, 1)

    def embedding(self, t: Tensor) -> Tensor:
        return super().embedding(t) + self.camera(self.given)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, camera: Tensor, num_frames: int) -> Tensor:
        self.given = camera
        objects = x.unflatten(0, (-1, num_frames))
        mean = objects.mean(1, keepdim=True).expand_as(objects).flatten(0, 1)
        return super().forward(x + self.others(mean), t, context)


class Wrapper(nn.Module):
    """As MVDream's `DiffusionWrapper`."""

    def __init__(self) -> None:
        super().__init__()
        self.diffusion_model = MultiViewUNet()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.diffusion_model(*args, **kwargs)


class LatentDiffusionInterface(Interface):
    """What the guidance uses of MVDream's class."""

    def __init__(self, linear_start: float, linear_end: float, timesteps: int, scale_factor: float, **_: Any) -> None:
        super().__init__()
        self.model, self.first_stage_model, self.scale_factor = Wrapper(), Autoencoder(), scale_factor
        betas = np.linspace(linear_start**0.5, linear_end**0.5, timesteps) ** 2
        abar = np.cumprod(1 - betas)
        for name, values in (("alphas_cumprod", abar), ("sqrt_recip", (1 / abar) ** 0.5),
                             ("sqrt_recipm1", (1 / abar - 1) ** 0.5)):  # fmt: skip
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))

    def q_sample(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        abar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        return abar.sqrt() * x + (1 - abar).sqrt() * noise

    def predict_start_from_noise(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return self.sqrt_recip[t].view(-1, 1, 1, 1) * x - self.sqrt_recipm1[t].view(-1, 1, 1, 1) * noise


PARAMS = {"linear_start": 0.00085, "linear_end": 0.012, "timesteps": 1000, "scale_factor": 0.5}


def write_weights(file: Path) -> str:
    """The weights, as MVDream's are given out: tensors by name."""
    state = LatentDiffusionInterface(**PARAMS).state_dict()
    names = ("model.", "first_stage_model.")
    weights = {k: recorded.weight(k, x) if k.startswith(names) else x for k, x in state.items()}
    torch.save(weights, file)
    return str(file)


def install(folder: Path, monkeypatch: Any) -> None:
    """Let the package `mvdream` have these classes and one model."""
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"target": TARGET, "params": PARAMS}}))
    parts = ("mvdream", "mvdream.ldm", "mvdream.ldm.interface", "mvdream.model_zoo")
    modules = {name: types.ModuleType(name) for name in parts}
    vars(modules["mvdream.ldm.interface"]).update(LatentDiffusionInterface=LatentDiffusionInterface)
    table = {NAME: {"config": "config.yaml", "repo_id": "MVDream/MVDream", "filename": "model.pt"}}
    vars(modules["mvdream.model_zoo"]).update(PRETRAINED_MODELS=table, get_config_file=lambda name: folder / name)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
