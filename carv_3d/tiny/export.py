"""The trained parts -> a StableDiffusionPipeline folder in half precision that old and new stacks load."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from carv_3d.io.files import replaced_folder
from carv_3d.tiny.denoiser import Denoiser
from carv_3d.tiny.quick import plain


def export(
    folder: Path,
    vae: Any,
    scaling: float,
    model: Denoiser,
    weights: dict[str, Tensor],
    tokenizer: Any,
    words: Path,
) -> None:
    """Write a StableDiffusionPipeline's folder; an old one is replaced at once, and keeps its README.md.

    transformers 5 drops the prefix ``text_model.`` from the keys, with which transformers 4 would load random text
    weights, so the prefix is put back.

    Args:
        folder: to write.
        vae: the autoencoder.
        scaling: its scaling factor, latents of unit variance.
        model: text encoder and UNet.
        weights: the model's averaged weights.
        tokenizer: of the text encoder.
        words: the folder of the tokenizer's own files.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from diffusers.models.attention_processor import AttnProcessor2_0
    from safetensors.torch import load_file, save_file

    averaged = copy.deepcopy(model)
    plain(averaged.unet)
    averaged.load_state_dict(weights)
    averaged.unet.set_attn_processor(AttnProcessor2_0())
    half_vae = copy.deepcopy(vae).half()
    half_vae.register_to_config(scaling_factor=scaling, _name_or_path="")  # no folder of this machine
    scheduler = DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction",
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=half_vae, text_encoder=averaged.text.half(), tokenizer=tokenizer, unet=averaged.unet.half(),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    with replaced_folder(folder) as part:
        pipeline.save_pretrained(part, safe_serialization=True)
        text = part / "text_encoder" / "model.safetensors"
        tensors = {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in load_file(text).items()}
        save_file({k: v.contiguous() for k, v in tensors.items()}, text, metadata={"format": "pt"})
        for name in ("vocab.json", "merges.txt", "tokenizer.json"):  # transformers 4 reads the first two, 5 the last
            shutil.copy(words / name, part / "tokenizer" / name)
        if (folder / "README.md").exists():
            shutil.copy(folder / "README.md", part / "README.md")
