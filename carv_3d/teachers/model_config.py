"""What the small files of a model folder may say, by key: kind and range. Keys that are not here are the libraries'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from carv_3d.core.options import BetaOptions, Options, option
from carv_3d.errors import CarvError


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
    layers_per_block: int = option(1, "Of each level.", least=1, most=1000)
    scaling_factor: float | None = option(0.18215, "What latents are multiplied by.", least=1e-6, most=1e6)
    shift_factor: float | None = option(None, "What is subtracted before.", least=-1e6, most=1e6)


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
class SchedulerConfig(BetaOptions, kinds={"beta_schedule": Literal["linear", "scaled_linear", "squaredcos_cap_v2"]}):
    """scheduler/scheduler_config.json."""

    trained_betas: list[float] | None = option(None, "In place of the three.", least=0, most=1)
    prediction_type: Literal["epsilon", "v_prediction"] = option("epsilon", "What the UNet predicts.")


def check_config(values: dict[str, Any], kind: type[Options]) -> None:
    """CarvError for the first key that is there with a value that it cannot have; absent keys have defaults."""
    for name, declared in kind.declared().items():
        if name in values:
            declared.check(values[name])


# Those that add noise as z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps, whatever they do when they sample.
SCHEDULERS = frozenset(
    f"{name}Scheduler"
    for name in (
        "DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep",
        "DPMSolverMultistepInverse", "DPMSolverSDE", "DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete",
        "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LCM", "LMSDiscrete", "PNDM", "SASolver", "TCD",
        "UniPCMultistep",
    )
)  # fmt: skip


def check_scheduler_class(name: Any) -> None:
    """CarvError for a scheduler whose noise is not known; None, where the folder does not name one, is taken."""
    if name is not None and not (isinstance(name, str) and name in SCHEDULERS):
        raise CarvError(
            f"_class_name is {name!r}, a scheduler whose noise is not known here; it must be one of diffusers with a "
            f"table of betas, such as {', '.join(sorted(SCHEDULERS)[:2])}"
        )
