"""A tiny model of threestudio's own `extern/ldm_zero123`, and stand-ins for the packages that its image encoder needs.

kornia and OpenAI's clip are not installed for a CPU run. kornia's two functions are written out; the image encoder that
clip would download is a linear layer of the same width.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

AUTOENCODER: dict[str, Any] = {
    "embed_dim": 4,
    "ddconfig": {
        "double_z": True, "z_channels": 4, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    },
    "lossconfig": {"target": "torch.nn.Identity"},
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "target": "extern.ldm_zero123.models.diffusion.ddpm.LatentDiffusion",
    "params": {
        "linear_start": 0.00085, "linear_end": 0.0120, "num_timesteps_cond": 1, "timesteps": 1000,
        "first_stage_key": "image_target", "cond_stage_key": "image_cond", "image_size": 8, "channels": 4,
        "cond_stage_trainable": False, "conditioning_key": "hybrid", "scale_factor": 0.18215,
        "unet_config": {
            "target": "extern.ldm_zero123.modules.diffusionmodules.openaimodel.UNetModel",
            "params": {
                "image_size": 8, "in_channels": 8, "out_channels": 4, "model_channels": 32,
                "attention_resolutions": [2, 1], "num_res_blocks": 1, "channel_mult": [1, 2], "num_heads": 2,
                "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 768, "use_checkpoint": True,
                "legacy": False,
            },
        },
        "first_stage_config": {
            "target": "extern.ldm_zero123.models.autoencoder.AutoencoderKL",
            "params": AUTOENCODER,
        },
        "cond_stage_config": {"target": "extern.ldm_zero123.modules.encoders.modules.FrozenCLIPImageEmbedder"},
    },
}  # fmt: skip


class Clip(nn.Module):
    """What the image encoder uses of OpenAI's model."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Identity()
        self.visual = nn.Linear(3 * 7 * 7, 768)

    def encode_image(self, image: Tensor) -> Tensor:
        return self.visual(torch.nn.functional.adaptive_avg_pool2d(image, 7).flatten(1))


def install() -> None:
    """Puts the stand-ins in place, once those libraries that look for kornia have not found it."""
    import diffusers  # noqa: F401
    import transformers  # noqa: F401

    clip, kornia = types.ModuleType("clip"), types.ModuleType("kornia")
    clip.load = lambda name, device, jit: (Clip(), None)  # type: ignore[attr-defined]

    def resize(x: Tensor, size: tuple[int, int], interpolation: str, align_corners: bool, antialias: bool) -> Tensor:
        assert not antialias
        return torch.nn.functional.interpolate(x, size, mode=interpolation, align_corners=align_corners)

    def normalize(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return (x - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)

    geometry, enhance = types.SimpleNamespace(resize=resize), types.SimpleNamespace(normalize=normalize)
    vars(kornia).update(geometry=geometry, enhance=enhance)
    augmentation = types.ModuleType("kornia.augmentation")
    sys.modules.update({"clip": clip, "kornia": kornia, "kornia.augmentation": augmentation})


def write(folder: Path) -> dict[str, str]:
    """A configuration, a checkpoint as Lightning writes it and an image; the options that name them."""
    from extern.ldm_zero123.models.diffusion.ddpm import LatentDiffusion
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(yaml.safe_dump({"model": CONFIG}))
    torch.manual_seed(0)
    model = LatentDiffusion(**CONFIG["params"])
    for parameter in model.parameters():  # some begin at zero, which would hide what goes through them
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    model.model_ema = type(model.model_ema)(model.model)
    torch.save({"global_step": 1, "state_dict": model.state_dict()}, folder / "model.ckpt")
    pixels = torch.randint(0, 255, (40, 40, 4), dtype=torch.uint8).numpy()
    Image.fromarray(pixels, "RGBA").save(folder / "image_rgba.png")
    return {
        "pretrained_model_name_or_path": str(folder / "model.ckpt"),
        "pretrained_config": str(folder / "model.yaml"),
        "cond_image_path": str(folder / "image_rgba.png"),
    }
