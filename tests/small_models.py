"""Stable Diffusion folders with random weights, small enough to build in a second; nothing of carv_3d is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

CONTEXT = 20  # tokens
LATENT = 8  # latents 8 x 8, images 16 x 16
UNET: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}


def as_v_prediction(source: Path, folder: Path) -> Path:
    """A copy whose scheduler says that the model predicts v."""
    import shutil

    shutil.copytree(source, folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": "v_prediction"}))
    return folder


def build_sd_folder(
    folder: Path, seed: int = 0, width: int = 16, latent: int = LATENT, context: int = CONTEXT, levels: int = 2
) -> Path:
    """Write the model; loads alike in transformers 4 and 5, whose tokenizers read different files.

    latent, context: the side of its latents, and its tokens. levels: of the VAE, so images are 2^(levels - 1) larger.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel

    state = torch.get_rng_state()
    torch.manual_seed(seed)
    size = _write_tokenizer(folder / "tokenizer", context)
    CLIPTextModel(_text_config(size, width, context)).save_pretrained(folder / "text_encoder", safe_serialization=True)
    unet = UNet2DConditionModel(**UNET, sample_size=latent, cross_attention_dim=width)
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(4, *[8] * (levels - 1)),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=latent * 2 ** (levels - 1),
        scaling_factor=0.5,
    ).save_pretrained(folder / "vae", safe_serialization=True)
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    torch.set_rng_state(state)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.19.3",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def build_xl_folder(folder: Path, seed: int = 1, widths: tuple[int, int] = (16, 24), pooled: int = 12) -> Path:
    """`build_sd_folder` with a second text encoder, and a UNet that takes its pooled embedding and time ids."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    build_sd_folder(folder, seed, widths[0])
    size = _write_tokenizer(folder / "tokenizer_2", CONTEXT, pad="!")
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    for part, width, kind in (
        ("text_encoder", widths[0], CLIPTextModel),
        ("text_encoder_2", widths[1], CLIPTextModelWithProjection),
    ):
        config = _text_config(size, width, CONTEXT, projection_dim=pooled, num_hidden_layers=2)
        kind(config).save_pretrained(folder / part, safe_serialization=True)
    UNet2DConditionModel(
        **UNET,
        sample_size=LATENT,
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=sum(widths),
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=pooled + 6 * 4,
        use_linear_projection=True,
    ).save_pretrained(folder / "unet", safe_serialization=True)
    torch.set_rng_state(state)
    index = json.loads((folder / "model_index.json").read_text())
    index.update(
        _class_name="StableDiffusionXLPipeline",
        force_zeros_for_empty_prompt=True,
        text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
        tokenizer_2=["transformers", "CLIPTokenizer"],
    )
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def _text_config(size: int, width: int, context: int, **more: int) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(**{
        "vocab_size": size, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": context, "bos_token_id": size - 2,
        "eos_token_id": size - 1, "pad_token_id": size - 1, **more,
    })  # fmt: skip


def _write_tokenizer(folder: Path, context: int, pad: str = "<|endoftext|>") -> int:
    """CLIP's byte alphabet with no merges, one token a character; returns the size of the vocabulary."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in keep]
    alphabet = [chr(byte) if byte in keep else chr(256 + others.index(byte)) for byte in range(256)]
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), "<|startoftext|>", "<|endoftext|>"]

    def write_pair() -> None:
        vocab = {token: i for i, token in enumerate(tokens)}
        (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
        (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")

    write_pair()
    tokenizer = CLIPTokenizer.from_pretrained(
        str(folder),
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token=pad,
        model_max_length=context,
    )
    tokenizer.save_pretrained(str(folder))
    write_pair()
    return len(tokens)
