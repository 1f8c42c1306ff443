"""A ControlNet and an InstructPix2Pix with random weights, small enough to build in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from small_models import UNET, build_sd_folder

LEVELS = 4  # of the VAE, so that it makes images 8 times smaller, as threestudio writes out


def build_sd8(folder: Path, context: int = 24) -> Path:
    """A Stable Diffusion whose images are 64, and latents 8."""
    return build_sd_folder(folder, context=context, levels=LEVELS)


def build_controlnet(folder: Path, width: int = 16) -> Path:
    """A ControlNet for `build_sd8`."""
    from diffusers import ControlNetModel

    state = torch.get_rng_state()
    torch.manual_seed(0)
    own: dict[str, Any] = {name: value for name, value in UNET.items() if name != "up_block_types"}
    ControlNetModel(**own, cross_attention_dim=width, conditioning_embedding_out_channels=(4, 4, 8, 8)).save_pretrained(
        folder, safe_serialization=True
    )
    torch.set_rng_state(state)
    return folder


def build_pix2pix(folder: Path, context: int = 24) -> Path:
    """An InstructPix2Pix: the UNet takes 8 channels."""
    from diffusers import UNet2DConditionModel

    build_sd8(folder, context)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**UNET, sample_size=8, cross_attention_dim=16, in_channels=8, out_channels=4)
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    torch.set_rng_state(state)
    file = folder / "model_index.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "_class_name": "StableDiffusionInstructPix2PixPipeline"})
    )
    return folder
