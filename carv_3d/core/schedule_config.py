"""What a diffusers scheduler's config says of the noise, whatever the solver; what is not understood is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch

from carv_3d.core.options import Options, option
from carv_3d.core.schedule_tables import named_betas, zero_snr
from carv_3d.errors import CarvError, shown

VP_CLASSES = (
    "DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMInverseScheduler", "DDIMParallelScheduler",
    "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DEISMultistepScheduler",
    "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverMultistepInverseScheduler", "UniPCMultistepScheduler", "SASolverScheduler", "LCMScheduler",
    "TCDScheduler",
)  # fmt: skip
FLOW_CLASSES = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
EDM_CLASSES = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
CLASSES = (*VP_CLASSES, *FLOW_CLASSES, *EDM_CLASSES)
SomeConfig = TypeVar("SomeConfig", bound=Options)

BetaSchedule = Literal["linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2"]
NOT_VP = ("sigma_data", "shift", "base_shift", "snr_shift_scale")
"""Keys of other schedules: next to betas they say that the class is not what it is called."""


@dataclass(frozen=True, kw_only=True)
class Timesteps(Options):
    """What every config may say."""

    num_train_timesteps: int = option(1000, "T.", least=1, most=10**6)


@dataclass(frozen=True, kw_only=True)
class VPConfig(Timesteps):
    """A scheduler with betas."""

    beta_start: float = option(0.0001, "The first beta.", least=0, below=1)
    beta_end: float = option(0.02, "The last beta.", above=0, most=1)
    beta_schedule: BetaSchedule = option("linear", "Between them.")
    trained_betas: list[float] | None = option(None, "In place of the three.", least=0, most=1)
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = option("epsilon", "What the network predicts.")
    rescale_betas_zero_snr: bool = option(False, "Whether the last timestep has no signal.")
    timestep_type: Literal["discrete"] = option("discrete", "What the network is given.")


@dataclass(frozen=True, kw_only=True)
class FlowConfig(Timesteps):
    """Flow matching."""

    prediction_type: Literal["flow_prediction"] = option("flow_prediction", "What the network predicts.")
    shift: float = option(1.0, "Of the sigmas.", above=0, most=1e6)
    flow_shift: float = option(1.0, "The same, in a solver with use_flow_sigmas.", above=0, most=1e6)
    use_dynamic_shifting: bool = option(False, "Whether the shift follows the image's size when sampling.")
    invert_sigmas: bool = option(False, "Whether t runs the other way: not understood.")
    base_shift: float = option(0.5, "mu at base_image_seq_len.", least=-100, most=100)
    max_shift: float = option(1.15, "mu at max_image_seq_len.", least=-100, most=100)
    base_image_seq_len: int = option(256, "Tokens of the latents.", least=1, most=10**9)
    max_image_seq_len: int = option(4096, "The same.", least=1, most=10**9)
    time_shift_type: Literal["exponential", "linear"] = option("exponential", "How mu becomes a shift.")


@dataclass(frozen=True, kw_only=True)
class EDMConfig(Timesteps):
    """EDM (arXiv 2206.00364)."""

    prediction_type: Literal["epsilon", "v_prediction"] = option("epsilon", "The sign of F.")
    sigma_min: float = option(0.002, "The least sigma.", above=0, most=1e6)
    sigma_max: float = option(80.0, "The largest sigma.", above=0, most=1e6)
    sigma_data: float = option(0.5, "Standard deviation of the data.", above=0, most=1e6)
    rho: float = option(7.0, "Of the spacing.", above=0, most=1e3)
    sigma_schedule: Literal["karras", "exponential"] = option("karras", "The spacing.")


def scheduler_parts(scheduler: Any) -> tuple[str, Mapping[str, Any] | None, Any]:
    """A diffusers scheduler's class, its config and its abar_t, None for what it lacks.

    Raises:
        CarvError: what is no scheduler, or one that has neither table nor a config that is known.
    """
    if getattr(scheduler, "scheduler", None) is not None:
        raise CarvError(f"from_diffusers takes a scheduler; give the scheduler of this {type(scheduler).__name__}.")
    name, config = type(scheduler).__name__, getattr(scheduler, "config", None)
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None and not (isinstance(config, Mapping) and name in CLASSES):
        raise CarvError(
            f"from_diffusers got a {name}, which has no alphas_cumprod; it takes a diffusers "
            "scheduler, and NoiseSchedule.from_config a scheduler's config."
        )
    return name, config if isinstance(config, Mapping) else None, table


def read_config(config: Mapping[str, Any]) -> tuple[str, dict[str, Any], str]:
    """The family of a scheduler's config, the arguments of its constructor, and the prediction type.

    Args:
        config: of a diffusers scheduler, `scheduler.config` or `scheduler_config.json`.

    Returns:
        "vp" with betas | "flow" | "edm", each as the constructor of `NoiseSchedule` takes it, and one of its
        prediction types.

    Raises:
        CarvError: no mapping; a class, beta_schedule or prediction_type that is not known; a value that cannot be.
    """
    if not isinstance(config, Mapping):
        raise CarvError(
            f"from_config takes a mapping such as scheduler.config, not a {type(config).__name__}; for a scheduler "
            "use NoiseSchedule.from_diffusers(scheduler)."
        )
    name = config.get("_class_name")
    name = _guessed(config) if name is None else name
    if name not in CLASSES:
        raise CarvError(
            f"_class_name is {shown(name)}, a scheduler whose noise is not known here; it must be one of "
            f"{', '.join(CLASSES)}."
        )
    if name in FLOW_CLASSES or config.get("use_flow_sigmas"):
        return _flow(config, name)
    if name in EDM_CLASSES:
        return _edm(config)
    return _vp(config, name)


def _guessed(config: Mapping[str, Any]) -> str:
    """The class of a config that does not say it: flow matching and EDM are known by keys of their own."""
    if "shift" in config:
        return "FlowMatchEulerDiscreteScheduler"
    return "EDMEulerScheduler" if "sigma_data" in config else "DDPMScheduler"


def _vp(config: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any], str]:
    values = _checked(VPConfig, config)
    for key in NOT_VP:
        if config.get(key) is not None:
            raise CarvError(
                f"{key} is {shown(config[key])}, as flow matching or EDM have it, and the {name} has betas: that is "
                "not understood."
            )
    betas = values.trained_betas
    if betas is None:
        start, end = float(values.beta_start), float(values.beta_end)
        table = named_betas(values.beta_schedule, values.num_train_timesteps, start, end)
    else:
        table = torch.as_tensor(betas, dtype=torch.float32)
    return "vp", {"betas": zero_snr(table) if values.rescale_betas_zero_snr else table}, values.prediction_type


def _flow(config: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any], str]:
    values = _checked(FlowConfig, config)
    if values.invert_sigmas:
        raise CarvError(f"invert_sigmas is True, which is not understood with {name}.")
    # a dynamic shift is made of the image's size when sampling; until one is given the table is as trained
    shift = values.shift if name in FLOW_CLASSES else values.flow_shift
    shift = 1.0 if values.use_dynamic_shifting else float(shift)
    return "flow", {"T": values.num_train_timesteps, "shift": shift}, values.prediction_type


def _edm(config: Mapping[str, Any]) -> tuple[str, dict[str, Any], str]:
    values = _checked(EDMConfig, config)
    names = ("sigma_min", "sigma_max", "sigma_data", "rho")
    arguments: dict[str, Any] = {key: float(getattr(values, key)) for key in names}
    arguments |= {"T": values.num_train_timesteps, "spacing": values.sigma_schedule}
    return "edm", arguments, "edm" if values.prediction_type == "epsilon" else "edm_v"


def dynamic_shift(config: Mapping[str, Any], image_seq_len: int) -> float:
    """The shift that a flow scheduler with `use_dynamic_shifting` takes for a number of image tokens.

    Args:
        config: base_shift (0.5), max_shift (1.15), base_image_seq_len (256), max_image_seq_len (4096) and
            time_shift_type ("exponential"), as diffusers names them.
        image_seq_len: tokens of the latents: (h / 2) (w / 2) for FLUX and Stable Diffusion 3.

    Returns:
        exp(mu) or mu, for `NoiseSchedule.flow(shift=...)`; mu is linear in image_seq_len.
    """
    values = _checked(FlowConfig, config)
    low, first, last = values.base_shift, values.base_image_seq_len, values.max_image_seq_len
    if not first < last:
        raise CarvError(f"base_image_seq_len is {first}; it must be below max_image_seq_len, {last}.")
    mu = low + (values.max_shift - low) * (image_seq_len - first) / (last - first)
    return math.exp(mu) if values.time_shift_type == "exponential" else mu


def _checked(kind: type[SomeConfig], config: Mapping[str, Any]) -> SomeConfig:
    """The keys of a config that its kind knows, as an object; CarvError, naming the key, for a wrong value."""
    return kind(**{key: config[key] for key in kind.declared() if key in config})
