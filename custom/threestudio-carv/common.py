"""What every guidance of this extension shares: options, ranks, embeddings, costs, state."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import threestudio
import torch
from omegaconf import OmegaConf
from threestudio.utils.base import BaseObject

from carv_3d.core.arguments import described
from carv_3d.core.costs import CostMeter
from carv_3d.core.options import Options
from carv_3d.errors import CarvError
from carv_3d.guidance.options import ViewPromptOptions
from carv_3d.guidance.previews import denoised_previews
from carv_3d.guidance.sds import GuidanceOutput

from .resuming import DESIGN, fit_state


@dataclass(frozen=True, kw_only=True)
class HostOptions(ViewPromptOptions):
    """threestudio's options of loading and prompting, which its guidance has and `carv_3d`'s has not."""

    enable_memory_efficient_attention: bool = False
    enable_sequential_cpu_offload: bool = False
    enable_attention_slicing: bool = False
    enable_channels_last_format: bool = False


def with_options(*kinds: type[Options], without: Sequence[str] = (), **defaults: Any) -> Callable[[type], type]:
    """Makes a class threestudio's structured config, with every option of `kinds` but those of `without`.

    An option has the default of its kind, of the last that has it, unless `defaults` gives another. All are annotated
    Any: `read_options` checks.
    """
    defaults = {name: declared.default for kind in kinds for name, declared in kind.declared().items()} | defaults
    defaults = {name: default for name, default in defaults.items() if name not in without}

    def decorate(config: type) -> type:
        config.__annotations__ = {**inspect.get_annotations(config), **dict.fromkeys(defaults, Any)}
        for name, default in defaults.items():
            setattr(config, name, default)
        return dataclass(config)

    return decorate


class Texts(NamedTuple):
    """threestudio's embeddings of B renders.

    Attributes:
        text: (B, L, D).
        uncond: (B, L, D), of the negative prompt, which is empty unless the user gives one.
        negatives: None, or Perp-Neg's embeddings (B, M, L, D) and weights (B, M).
    """

    text: torch.Tensor
    uncond: torch.Tensor
    negatives: tuple[torch.Tensor, torch.Tensor] | None


class CarvCalls:
    """Next to one of threestudio's base classes, a guidance whose work is done by a `carv_3d` object.

    A subclass sets `_carv` to that object in `configure`, after `super().configure()`; it has `join_ranks`,
    `state_dict` and `load_state_dict`. A call begins with `_begin` and ends with `_result`. What is not meant for
    threestudio is private, so that it is not searched for modules.
    """

    cfg: Any
    _carv: Any

    def __init__(self, cfg: Any = None, *args: Any, **kwargs: Any) -> None:
        check_names(self.Config, cfg)
        super().__init__(cfg, *args, **kwargs)

    def configure(self) -> None:
        """Called by threestudio before anything else."""
        read_options(HostOptions, self.cfg)  # else 'no' would count as true
        self._meter = CostMeter(self.device)
        self._when = (0, 0)  # step, epoch

    def _loading(self) -> dict[str, Any]:
        """The host's options of loading, as `StableDiffusionTeacher.load` and `load_denoiser` take them."""
        if self.cfg.enable_memory_efficient_attention:
            threestudio.info("PyTorch 2 uses memory efficient attention by default.")
        return {
            "device": self.device,
            "half_precision": self.cfg.half_precision_weights,
            "channels_last": self.cfg.enable_channels_last_format,
            "attention_slicing": self.cfg.enable_attention_slicing,
            "cpu_offload": self.cfg.enable_sequential_cpu_offload,
        }

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Called by threestudio before each batch."""
        self._when = (global_step, epoch)

    def _begin(self, renders: int) -> tuple[int, int]:
        """(step, epoch) of this call. Ranks are read here: some systems build their guidance before there are any."""
        self._carv.join_ranks(**ranks())
        self._meter.seconds.clear()
        self._meter.count(renders=renders)
        return self._when

    def _texts(self, prompt_utils: Any, *views: torch.Tensor) -> Texts:
        """What threestudio's prompts give for elevation, azimuth and camera_distances (B,)."""
        n, by_view = len(views[0]), self.cfg.view_dependent_prompting
        if not hasattr(prompt_utils, "use_perp_neg"):
            raise CarvError(f"prompt_utils is {described(prompt_utils)}; give what a prompt processor returns.")
        if not prompt_utils.use_perp_neg:
            given = check_texts(prompt_utils.get_text_embeddings(*views, by_view), 2 * n)
            text, uncond = given.chunk(2)  # threestudio gives text first
            return Texts(text, uncond, None)
        given, weights = prompt_utils.get_text_embeddings_perp_neg(*views, by_view)
        if not isinstance(weights, torch.Tensor) or weights.dim() != 2 or len(weights) != n:
            shape = tuple(weights.shape) if isinstance(weights, torch.Tensor) else described(weights)
            raise CarvError(f"Perp-Neg's weights are {shape}; for {n} renders they must be ({n}, M).")
        check_texts(given, (2 + weights.shape[1]) * n)
        negatives = given[2 * n :].unflatten(0, (n, weights.shape[1]))  # interleaved by item
        return Texts(given[:n], given[n : 2 * n], (negatives, weights))

    def _result(
        self, losses: dict[str, torch.Tensor | None], scalars: dict[str, float], out: GuidanceOutput
    ) -> dict[str, Any]:
        """What threestudio gets: the losses that there are, and what it logs.

        The seconds by phase are of this call, UNet samples and renders since the start.
        """
        norm = float(out.estimate.grad.norm())  # over the batch, as threestudio logs it
        given = {name: loss for name, loss in losses.items() if loss is not None}
        return {**given, **scalars, "grad_norm": norm, **self._meter.as_scalars()}

    def _sds_result(self, out: GuidanceOutput) -> dict[str, Any]:
        """`_result` of a step of score distillation, its losses under threestudio's names."""
        losses = {"loss_sds": out.loss_sds, "loss_sds_img": out.loss_sds_img, "loss_recon": out.loss_recon}
        return self._result(losses, out.scalars, out)

    def carv_state(self) -> dict[str, Any]:
        """For the mixin `carv-checkpoint`: tensors and primitives."""
        return {**self._carv.state_dict(), "costs": self._meter.state_dict(), "design": self._design()}

    def load_carv_state(self, state: dict[str, Any]) -> None:
        """Takes back `carv_state`; what the options no longer go with is dropped, with a sentence."""
        if not isinstance(state, dict) or "costs" not in state:
            raise CarvError(
                f"this is no state of a carv guidance ({described(state)}): resume from another checkpoint."
            )
        self._carv.join_ranks(**ranks())  # first: each rank resumes with noise of its own
        fitting, sentences = fit_state(state, self._carv.state_dict(), state.get("design", {}), self._design())
        for sentence in sentences:
            threestudio.info(sentence)
        self._carv.load_state_dict(fitting)
        self._meter.load_state_dict(state["costs"])

    def _design(self) -> dict[str, Any]:
        """The options that a run may be resumed with another value of."""
        return {name: getattr(self.cfg, name) for name in DESIGN if hasattr(self.cfg, name)}


class CarvGuidance(CarvCalls, BaseObject):
    """A guidance that trains nothing of its own; `_carv` is an `SDSGuidance`."""

    def set_min_max_steps(self, min_step_percent: float = 0.02, max_step_percent: float = 0.98) -> None:
        """The range of timesteps from now on, for systems that set it themselves before each call."""
        options = self._carv.options
        fixed = {name: False for name in ("sqrt_anneal", "t_anneal") if name in options.declared()}
        given = {"min_step_percent": min_step_percent, "max_step_percent": max_step_percent}
        self._carv.options = replace(options, **fixed, **given)

    def _previews(self, out: GuidanceOutput, *views: torch.Tensor) -> dict[str, Any]:
        """`eval`, what threestudio writes for `guidance_eval`; views: elevation, azimuth, camera_distances (B,)."""
        with self._meter.uncounted():
            steps = getattr(self.cfg, "n_ddim_steps", 50)
            shown = denoised_previews(self._carv, out, self.cfg.max_items_eval, steps)
        rows = zip(shown["noise_levels"], *(view.tolist() for view in views))
        texts = [f"n{n:.02f}\ne{e:.01f}\na{a:.01f}\nc{c:.02f}" for n, e, a, c in rows]
        return {"eval": {**shown, "texts": texts}}


def check_texts(given: Any, count: int) -> torch.Tensor:
    """The embeddings of a prompt processor; CarvError unless they are a tensor (count, L, D)."""
    if not isinstance(given, torch.Tensor) or given.dim() != 3 or len(given) != count:
        shape = tuple(given.shape) if isinstance(given, torch.Tensor) else described(given)
        raise CarvError(f"the prompt processor gave {shape} as embeddings; these views need a tensor ({count}, L, D).")
    return given


def check_names(config: Any, cfg: Any) -> None:
    """Refuses an option that `config`, a dataclass, does not have; threestudio's error is a bare TypeError.

    Raises:
        CarvError: with the nearest name.
    """
    known = [field.name for field in fields(config)]
    for name in cfg or {}:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1, 0.6)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
            raise CarvError(f"guidance has no option {name!r}; {hint}")


def read_options(kind: type[Options], cfg: Any, **instead: Any) -> Any:
    """Options of `kind` from those of the host's that it has, or from `instead`.

    Raises:
        CarvError: for a bad value.
    """
    given = OmegaConf.to_container(cfg, resolve=True) | instead
    return kind(**{name: value for name, value in given.items() if name in kind.declared()})


def camera_condition(kind: str, views: Sequence[torch.Tensor], mvp_mtx: torch.Tensor, c2w: torch.Tensor) -> Any:
    """What a LoRA score is given as camera, (B, ...).

    Args:
        kind: of `VSDOptions.camera_condition_type`.
        views: elevation and azimuth in degrees, and distance, (B,) each.
        mvp_mtx: (B, 4, 4).
        c2w: (B, 4, 4).
    """
    elevation, azimuth, distance = views
    if kind == "spherical":
        radians = torch.deg2rad(azimuth)
        return torch.stack([torch.deg2rad(elevation), radians.sin(), radians.cos(), distance], -1)
    return {"extrinsics": c2w, "mvp": mvp_mtx, "none": elevation[:, None][:, :0]}[kind]


def with_gradient(rgb: torch.Tensor) -> torch.Tensor:
    """The renders, with autograd: a host may ask for previews alone, or for a loss that it does not go back through."""
    if not isinstance(rgb, torch.Tensor):
        raise CarvError(f"rgb is {described(rgb)}; it must be a torch tensor of renders.")
    return rgb if rgb.requires_grad else rgb.detach().requires_grad_()


def ranks() -> dict[str, int]:
    """This process's rank and world_size; 0 and 1 where there is no process group (yet)."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return {"rank": 0, "world_size": 1}
    return {"rank": torch.distributed.get_rank(), "world_size": torch.distributed.get_world_size()}
