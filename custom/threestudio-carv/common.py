"""What every guidance of this extension shares: options, ranks, embeddings, costs, state."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import threestudio
import torch
from omegaconf import OmegaConf
from threestudio.utils.base import BaseObject

from carv_3d.core.costs import CostMeter
from carv_3d.errors import CarvError


class CarvCalls:
    """Beside one of threestudio's base classes, a guidance whose work is done by a `carv_3d` object with `join_ranks`,
    `state_dict` and `load_state_dict`.

    A subclass sets `_carv` to that object in `configure`, after `super().configure()`, and calls `_begin` first in its
    `__call__`, `_costs` last. What is not meant for threestudio is private, so that it is not searched for modules.
    """

    cfg: Any
    _carv: Any

    def __init__(self, cfg: Any = None, *args: Any, **kwargs: Any) -> None:
        check_names(self.Config, cfg)
        super().__init__(cfg, *args, **kwargs)

    def configure(self) -> None:
        self._meter = CostMeter(self.device)
        self._when = (0, 0)  # epoch, step

    def _loading(self) -> dict[str, Any]:
        """threestudio's options of loading, as `StableDiffusionTeacher.load` and `load_denoiser` take them."""
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
        self._when = (epoch, global_step)

    def _begin(self, renders: int) -> tuple[int, int]:
        """(epoch, step) of this call. Ranks are read here: some systems build their guidance before there are any."""
        self._carv.join_ranks(**ranks())
        self._meter.seconds.clear()
        self._meter.count(renders=renders)
        return self._when

    def _costs(self) -> dict[str, float]:
        """Seconds by phase of this call; UNet rows and renders since the start."""
        return self._meter.as_scalars()

    def carv_state(self) -> dict[str, Any]:
        """For the mixin `carv-checkpoint`: tensors and primitives."""
        return {**self._carv.state_dict(), "costs": self._meter.state_dict()}

    def load_carv_state(self, state: dict[str, Any]) -> None:
        self._carv.join_ranks(**ranks())  # first: each rank goes on with noise of its own
        self._carv.load_state_dict(state)
        self._meter.load_state_dict(state["costs"])


class CarvGuidance(CarvCalls, BaseObject):
    """A guidance that trains nothing of its own."""


def check_names(config: Any, cfg: Any) -> None:
    """Raises CarvError for an option that `config`, a dataclass, does not have; threestudio's is a bare TypeError."""
    known = [one.name for one in fields(config)]
    for name in cfg or {}:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1, 0.6)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
            raise CarvError(f"guidance has no option {name!r}; {hint}")


def read_options(kind: Callable[..., Any], cfg: Any, **more: Any) -> Any:
    """A dataclass of options from those of the host's that it has, and `more`. Raises CarvError for a bad value."""
    given = {**OmegaConf.to_container(cfg, resolve=True), **more}
    names = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in given.items() if name in names})


def embeddings(prompt_utils: Any, views: tuple) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """(text (B, L, D), unconditional (B, L, D), None or Perp-Neg's (negatives (B, 2, L, D), weights (B, 2))).

    views: elevation, azimuth, camera_distances (B,), and whether prompts depend on them.
    """
    n = len(views[0])
    if not prompt_utils.use_perp_neg:
        text, uncond = prompt_utils.get_text_embeddings(*views).chunk(2)  # threestudio gives text first
        return text, uncond, None
    given, weights = prompt_utils.get_text_embeddings_perp_neg(*views)
    negatives = given[2 * n :].unflatten(0, (n, weights.shape[1]))  # interleaved by item
    return given[:n], given[n : 2 * n], (negatives, weights)


def ranks() -> dict[str, int]:
    """rank and world_size of this process; (0, 1) where there is no process group (yet)."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return {"rank": 0, "world_size": 1}
    return {"rank": torch.distributed.get_rank(), "world_size": torch.distributed.get_world_size()}


def preview_texts(noise_levels: Any, elevation: Any, azimuth: Any, camera_distances: Any) -> list[str]:
    """What threestudio writes beside each image of `guidance_eval`."""
    rows = zip(noise_levels, elevation.tolist(), azimuth.tolist(), camera_distances.tolist())
    return [f"n{n:.02f}\ne{e:.01f}\na{a:.01f}\nc{c:.02f}" for n, e, a, c in rows]
