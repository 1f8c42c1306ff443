"""Tiny latent diffusion models with the interface of CompVis' code, as Zero123's that comes with threestudio.

They stand in for `extern.ldm_zero123`, which is not here, in tests and in recordings alike: latents are 8 x 8, images
16 x 16. Weights are `recorded_parity.fill`'s, so that a recording needs none.
"""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path
from typing import Any

import recorded_parity as recorded
import torch
import yaml
from torch import Tensor, nn

WIDTH = 8  # of the condition
TARGET = "models.diffusion.ddpm.LatentDiffusion"
VAE = {"target": "torch.nn.Identity", "params": {"ddconfig": {"resolution": 16}}}


class Gaussian:
    """The posterior of an image."""

    def __init__(self, moments: Tensor) -> None:
        self.mean, logvar = moments.chunk(2, 1)
        self.std = (0.5 * logvar.clamp(-30, 20)).exp()

    def mode(self) -> Tensor:
        return self.mean

    def sample(self) -> Tensor:
        return self.mean + self.std * torch.randn(self.mean.shape)


class Autoencoder(nn.Module):
    """Images (B, 3, 16, 16) in [-1, 1] to latents (B, 4, 8, 8) and back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.SiLU(), nn.Conv2d(8, 8, 3, 1, 1))
        self.quant_conv, self.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)
        self.decoder = nn.Sequential(nn.Conv2d(4, 12, 3, 1, 1), nn.PixelShuffle(2))

    def encode(self, x: Tensor) -> Gaussian:
        return Gaussian(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))


class UNet(nn.Module):
    """Noise predictions for (N, C, 8, 8), a timestep and a context (N, L, D)."""

    def __init__(self, channels: int, context: int = WIDTH) -> None:
        super().__init__()
        self.input = nn.Conv2d(channels, 16, 3, 1, 1)
        self.time = nn.Linear(8, 16)
        self.query, self.key, self.value = nn.Linear(16, 8), nn.Linear(context, 8), nn.Linear(context, 16)
        self.norm, self.output = nn.GroupNorm(4, 16), nn.Conv2d(16, 4, 3, 1, 1)

    def embedding(self, t: Tensor) -> Tensor:
        angles = t[:, None].float() * torch.tensor([1.0, 0.1, 0.01, 0.003])
        return self.time(torch.cat([angles.sin(), angles.cos()], 1))

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        h = torch.nn.functional.silu(self.input(x) + self.embedding(t)[:, :, None, None])
        pixels = h.flatten(2).transpose(1, 2)
        # sigmoid in place of softmax: a single token must count as well
        mix = (self.query(pixels) @ self.key(context).transpose(1, 2) / math.sqrt(8)).sigmoid() @ self.value(context)
        return self.output(torch.nn.functional.silu(self.norm(h + mix.transpose(1, 2).view_as(h))))


class Wrapper(nn.Module):
    """As CompVis' `DiffusionWrapper` of the kind hybrid."""

    def __init__(self) -> None:
        super().__init__()
        self.diffusion_model = UNet(8)

    def forward(self, x: Tensor, t: Tensor, c_concat: list[Tensor], c_crossattn: list[Tensor]) -> Tensor:
        return self.diffusion_model(torch.cat([x, *c_concat], 1), t, torch.cat(c_crossattn, 1))


class ImageEncoder(nn.Module):
    """Images in [-1, 1] to (B, 1, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 16 * 16, WIDTH)

    def encode(self, image: Tensor) -> Tensor:
        return self.linear(image.flatten(1))[:, None].tanh()


class Averages(nn.Module):
    """Running means of weights, under names without points, as CompVis' `LitEma`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, parameter in model.named_parameters():
            self.register_buffer(name.replace(".", ""), parameter.detach().clone())

    def copy_to(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            parameter.data.copy_(getattr(self, name.replace(".", "")))


class Interface(nn.Module):
    """What CompVis' latent diffusions have in common. A subclass makes the parts."""

    model: nn.Module
    first_stage_model: Autoencoder
    scale_factor: float

    def encode_first_stage(self, x: Tensor) -> Gaussian:
        return self.first_stage_model.encode(x)

    def get_first_stage_encoding(self, posterior: Gaussian) -> Tensor:
        return self.scale_factor * posterior.sample()

    def decode_first_stage(self, z: Tensor) -> Tensor:
        return self.first_stage_model.decode(z / self.scale_factor)

    def apply_model(self, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        return self.model(x, t, **cond)


class LatentDiffusion(Interface):
    """What threestudio's Zero123 guidances use of CompVis' class."""

    def __init__(self, scale_factor: float = 0.5, use_ema: bool = True, **_: Any) -> None:
        super().__init__()
        self.scale_factor, self.use_ema = scale_factor, use_ema
        self.model, self.first_stage_model, self.cond_stage_model = Wrapper(), Autoencoder(), ImageEncoder()
        self.cc_projection = nn.Linear(WIDTH + 4, WIDTH)
        if use_ema:
            self.model_ema = Averages(self.model)

    def get_learned_conditioning(self, image: Tensor) -> Tensor:
        return self.cond_stage_model.encode(image)


def install(package: str, monkeypatch: Any) -> None:
    """Let `package` have these classes, where its own module would be."""
    path, _, name = f"{package}.{TARGET}".rpartition(".")
    parts = path.split(".")
    for n in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:n]), types.ModuleType(".".join(parts[:n])))
    setattr(sys.modules[path], name, LatentDiffusion)


def write_zero123(folder: Path, target: str = f"extern.ldm_zero123.{TARGET}") -> dict[str, str]:
    """A configuration, its checkpoint and an image in `folder`; the options that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    params = {"linear_start": 0.00085, "linear_end": 0.012, "timesteps": 1000, "scale_factor": 0.5, "image_size": 8}
    config = {"model": {"target": target, "params": {**params, "first_stage_config": VAE}}}
    (folder / "model.yaml").write_text(yaml.safe_dump(config))
    weights = {name: recorded.weight(name, old) for name, old in LatentDiffusion().state_dict().items()}
    torch.save({"global_step": 3, "state_dict": weights}, folder / "model.ckpt")
    write_image(folder / "image.png")
    return {
        "pretrained_model_name_or_path": str(folder / "model.ckpt"),
        "pretrained_config": str(folder / "model.yaml"),
        "cond_image_path": str(folder / "image.png"),
    }


def write_image(file: Path) -> None:
    """An image with transparency, of another size than the models'."""
    import numpy as np
    from PIL import Image

    pixels = (recorded.fill("image", 23, 17, 4).numpy() + 1) * 127.5
    Image.fromarray(pixels.astype(np.uint8)).save(file)
