"""A diffusers folder's weights as one file, in the names of Stable Diffusion's own code."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
OUTER = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
LAYERS = 1  # of each block of the small models


def _unet_name(key: str) -> str:
    for ours, theirs in OUTER.items():
        if key.startswith(ours + "."):
            return theirs + key.removeprefix(ours)
    kind, i, part, j, rest = re.match(r"(down_blocks|up_blocks|mid_block)\.?(\d*)\.(\w+)\.(\d)\.(.*)", key).groups()  # type: ignore[union-attr]
    number, j = int(i or 0), int(j)
    if part == "resnets":
        for ours, theirs in RESNET.items():
            rest = rest.replace(ours, theirs) if rest.startswith(ours + ".") else rest
    if kind == "mid_block":
        return f"middle_block.{2 * j if part == 'resnets' else 1}.{rest}"
    here = (LAYERS + 1) * number + j
    if kind == "down_blocks":
        if part == "downsamplers":
            return f"input_blocks.{(LAYERS + 1) * (number + 1)}.0.{rest.replace('conv', 'op')}"
        return f"input_blocks.{here + 1}.{int(part == 'attentions')}.{rest}"
    if part == "upsamplers":  # behind the attention of the first block
        return f"output_blocks.{(LAYERS + 1) * number + LAYERS}.2.{rest}"
    return f"output_blocks.{here}.{int(part == 'attentions')}.{rest}"


def _vae_name(key: str, levels: int) -> str:
    for ours, theirs in (
        ("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"), ("mid_block.attentions.0", "mid.attn_1"),
        ("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"),
        ("downsamplers.0", "downsample"), ("upsamplers.0", "upsample"),
    ):  # fmt: skip
        key = key.replace(ours, theirs)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = re.sub(r"down_blocks\.(\d)", r"down.\1", key)
    key = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}", key)
    return key.replace("resnets", "block")


def _text(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}text_model.{key.removeprefix('text_model.')}": value for key, value in weights.items()}


def _open_clip(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    weights = {key.removeprefix("text_model."): value for key, value in weights.items()}
    out = {
        "token_embedding.weight": weights["embeddings.token_embedding.weight"],
        "positional_embedding": weights["embeddings.position_embedding.weight"],
        "text_projection": weights["text_projection.weight"].T,
    }
    for key, value in weights.items():
        for ours, theirs in (("final_layer_norm", "ln_final"), ("encoder.layers", "transformer.resblocks")):
            if not key.startswith(ours):
                continue
            name = key.replace(ours, theirs)
            for old, new in (
                ("layer_norm", "ln_"), ("fc1", "c_fc"), ("fc2", "c_proj"), ("self_attn.out_proj", "attn.out_proj"),
            ):  # fmt: skip
                name = name.replace(old, new)
            if "_proj" not in name or "out_proj" in name or "c_proj" in name:
                out[name] = value
            elif "q_proj" in name:
                three = [weights[key.replace("q_proj", f"{x}_proj")] for x in "qkv"]
                out[name.replace("self_attn.q_proj.", "attn.in_proj_")] = torch.cat(three)
    return {prefix + key: value for key, value in out.items()}


def vae_tensors(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """Of a small model's VAE."""
    vae, out = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors"), {}
    for key, value in vae.items():
        matrix = "attentions" in key and key.endswith("weight") and value.dim() == 2
        out[prefix + _vae_name(key, 2)] = value[:, :, None, None] if matrix else value
    return out


def write_single_file(folder: Path, file: Path, open_clip: bool = False, **more: Tensor) -> Path:
    """Of a small Stable Diffusion 1 or XL, or of 2, whose text encoder has OpenCLIP's names; `more` goes in as well."""
    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    text = load_file(folder / "text_encoder" / "model.safetensors")
    out = {f"model.diffusion_model.{_unet_name(key)}": value for key, value in unet.items()}
    out |= vae_tensors(folder, "first_stage_model.") | more
    if (folder / "text_encoder_2").is_dir():
        out |= _text(text, "conditioner.embedders.0.transformer.")
        out |= _open_clip(load_file(folder / "text_encoder_2" / "model.safetensors"), "conditioner.embedders.1.model.")
    elif open_clip:
        width = next(value for key, value in text.items() if key.endswith("final_layer_norm.weight")).numel()
        out |= _open_clip({**text, "text_projection.weight": torch.eye(width)}, "cond_stage_model.model.")
    else:
        out |= _text(text, "cond_stage_model.transformer.")
    save_file({key: value.clone().contiguous() for key, value in out.items()}, file)
    return file
