"""What the small files of a model folder may say, by key: kind and range. Keys that are not here are the libraries'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from carv_3d.core.options import Options, option
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError

SCALING = 0.18215  # of a VAE that does not say it: Stable Diffusion's


@dataclass(frozen=True, kw_only=True)
class UNetConfig(Options):
    """unet/config.json."""

    sample_size: int | list[int] = option(64, "Side of the latents of its training.", least=1, most=4096)
    in_channels: int = option(4, "Channels of the latents.", least=1, most=4096)
    out_channels: int = option(4, "The same.", least=1, most=4096)
    cross_attention_dim: int = option(1280, "Width of the text.", least=1, most=2**16)
    block_out_channels: list[int] = option(lambda: [320], "Of each level.", least=1, most=2**16)
    layers_per_block: int | list[int] = option(2, "Of each level.", least=1, most=1000)
    addition_time_embed_dim: int | None = option(None, "Of Stable Diffusion XL.", least=1, most=2**16)
    projection_class_embeddings_input_dim: int | None = option(None, "The same.", least=1, most=2**20)


@dataclass(frozen=True, kw_only=True)
class VAEConfig(Options):
    """vae/config.json."""

    latent_channels: int = option(4, "Channels of the latents.", least=1, most=4096)
    block_out_channels: list[int] = option(lambda: [64], "Of each level.", least=1, most=2**16)
    encoder_block_out_channels: list[int] = option(lambda: [64], "The same, of SANA.", least=1, most=2**16)
    layers_per_block: int = option(1, "Of each level.", least=1, most=1000)
    scaling_factor: float | None = option(SCALING, "What latents are multiplied by.", least=1e-6, most=1e6)
    shift_factor: float | None = option(None, "What is subtracted before.", least=-1e6, most=1e6)
    latents_mean: list[float] | None = option(None, "The same, of each channel.", least=-1e6, most=1e6)
    latents_std: list[float] | None = option(None, "What they are divided by, of each.", least=1e-5, most=1e6)


@dataclass(frozen=True, kw_only=True)
class TextConfig(Options):
    """text_encoder/config.json."""

    vocab_size: int = option(49408, "Tokens.", least=1, most=2**24)
    hidden_size: int = option(512, "Width of the text.", least=1, most=2**16)
    intermediate_size: int = option(2048, "Width of its hidden layers.", least=1, most=2**18)
    projection_dim: int = option(512, "Width of the pooled text.", least=1, most=2**16)
    num_hidden_layers: int = option(12, "Layers.", least=1, most=1000)
    num_attention_heads: int = option(8, "Heads of each.", least=1, most=2**12)
    max_position_embeddings: int = option(77, "Tokens of a prompt.", least=1, most=2**20)


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(Options):
    """tokenizer/tokenizer_config.json."""

    model_max_length: int = option(77, "Tokens of a prompt.", least=3, most=1e31)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Options):
    """transformer/config.json."""

    sample_size: int | None = option(None, "Side of the latents of its training.", least=1, most=4096)
    in_channels: int | None = option(None, "Channels of the latents, packed ones among them.", least=1, most=4096)
    out_channels: int | None = option(None, "The same, with those of a learned variance.", least=1, most=4096)
    patch_size: int = option(1, "Side of a patch.", least=1, most=64)
    num_layers: int = option(1, "Layers.", least=1, most=1000)
    num_attention_heads: int = option(1, "Heads of each.", least=1, most=2**12)
    attention_head_dim: int = option(1, "Width of a head.", least=1, most=2**12)
    joint_attention_dim: int | None = option(None, "Width of the text.", least=1, most=2**16)
    caption_channels: int | None = option(None, "The same.", least=1, most=2**16)
    pooled_projection_dim: int | None = option(None, "Width of the pooled text.", least=1, most=2**16)


def vae_factor(vae: Any) -> int:
    """How many times larger images are than their latents. vae: its config, an object or a mapping."""
    get = vae.get if isinstance(vae, Mapping) else partial(getattr, vae)
    levels = get("block_out_channels", None) or get("encoder_block_out_channels", (64,))
    return int(2 ** (len(levels) - 1))


def latent_scale(vae: Any, device: torch.device) -> tuple[Any, Any]:
    """Scaling and shift of `z = (encoded - shift) * scaling`, numbers or (1, C, 1, 1), as diffusers' pipelines have it.

    Args:
        vae: its config, with scaling_factor and shift_factor, or latents_mean and latents_std.
        device: of the tensors.

    Raises:
        CarvError: a mean without a standard deviation, or another number of them than there are channels.
    """
    scaling = float(getattr(vae, "scaling_factor", None) or SCALING)
    mean, std = (getattr(vae, name, None) for name in ("latents_mean", "latents_std"))
    if mean is None and std is None:
        return scaling, float(getattr(vae, "shift_factor", None) or 0.0)
    if any(values is None or len(values) != vae.latent_channels for values in (mean, std)):
        raise CarvError(f"the VAE's latents_mean and latents_std must both be lists of {vae.latent_channels} numbers.")
    shape = (1, vae.latent_channels, 1, 1)
    return scaling / torch.tensor(std, device=device).view(shape), torch.tensor(mean, device=device).view(shape)


def check_config(values: dict[str, Any], kind: type[Options]) -> None:
    """CarvError for the first key that is there with a value that it cannot have; absent keys have defaults."""
    for name, declared in kind.declared().items():
        if name in values:
            declared.check(values[name])


def check_prediction_type(kind: str, schedule: NoiseSchedule, name: str = "") -> str:
    """The prediction type itself; CarvError for one that is not known, or that the schedule rules out."""
    value = torch.ones(1, 1, device=schedule.device)
    schedule.target(kind, value, value, torch.zeros(1, dtype=torch.long, device=schedule.device))
    if kind == "epsilon" and float(schedule.alphas_cumprod[-1]) == 0:
        raise CarvError(
            f"{name or 'this model'} predicts epsilon and its schedule ends in noise alone (abar = 0, as "
            "rescale_betas_zero_snr makes it): there the clean latents would be divided by 0; such a model predicts "
            "v_prediction or sample, and its scheduler_config.json must say so."
        )
    return kind
