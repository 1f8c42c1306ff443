"""The teacher's noise schedule: alpha_t, sigma_t and the objective's weight w(t), as tables over t."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from carv_3d.core.options import BetaOptions, Weighting
from carv_3d.errors import CarvError, shown

WEIGHTINGS = get_args(Weighting)


class NoiseSchedule:
    """`z_t = alpha_t z + sigma_t eps`, alpha_t = sqrt(abar_t), sigma_t = sqrt(1 - abar_t).

        NoiseSchedule.from_diffusers(pipe.scheduler)
        NoiseSchedule.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
        NoiseSchedule(alphas_cumprod), NoiseSchedule.from_betas(betas), NoiseSchedule.scaled_linear()

    Timesteps are the integers 0 .. num_train_timesteps - 1.
    """

    def __init__(self, alphas_cumprod: Tensor | Sequence[float] | Any) -> None:
        """A schedule from its table.

        Args:
            alphas_cumprod: (T,) abar_t in [0, 1], which falls with t: a tensor on any device, a NumPy array or a list.

        Raises:
            CarvError: another kind of thing, betas, or a table that rises.
        """
        self.alphas_cumprod = _table("alphas_cumprod", alphas_cumprod)
        _check_falls(self.alphas_cumprod)
        self._alpha = self.alphas_cumprod.sqrt()
        self._sigma = (1 - self.alphas_cumprod).sqrt()
        self.estimators: dict[Any, Any] = {}  # of `sds_loss`, by their options
        self._weights = {
            "sds": 1 - self.alphas_cumprod,
            "uniform": torch.ones_like(self.alphas_cumprod),
            "fantasia3d": self._alpha * (1 - self.alphas_cumprod),
        }

    @classmethod
    def scaled_linear(cls, T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> NoiseSchedule:
        """Stable Diffusion's schedule: sqrt(beta) is linear in t. Equal to diffusers' to the last bit.

        Args:
            T: the number of timesteps.
            beta_start: beta at t = 0.
            beta_end: beta at t = T - 1.
        """
        o = BetaOptions(num_train_timesteps=T, beta_schedule="scaled_linear", beta_start=beta_start, beta_end=beta_end)
        return cls.from_betas(named_betas(o))

    @classmethod
    def from_betas(cls, betas: Tensor | Sequence[float] | Any) -> NoiseSchedule:
        """abar_t = prod_(s <= t) (1 - beta_s).

        Args:
            betas: (T,) in [0, 1].

        Raises:
            CarvError: no such table, or abar in place of betas.
        """
        table = _table("betas", betas)
        if float(table[0]) > 0.5:
            raise CarvError(
                f"betas begin at {float(table[0]):.4g}, so these are no betas; for abar_t use "
                "NoiseSchedule(alphas_cumprod)."
            )
        return cls(torch.cumprod(1.0 - table, dim=0))

    @classmethod
    def from_diffusers(cls, scheduler: Any) -> NoiseSchedule:
        """The schedule of a diffusers scheduler (DDPM, DDIM, Euler, DPM-Solver, ...), whatever it samples with.

        Raises:
            CarvError: a flow-matching or EDM scheduler, or something else.
        """
        inner = getattr(scheduler, "scheduler", None)
        if inner is not None:
            raise CarvError(f"from_diffusers takes a scheduler; give the scheduler of this {type(scheduler).__name__}.")
        config = getattr(scheduler, "config", None)
        refuse_flows(config if isinstance(config, Mapping) else {}, type(scheduler).__name__)
        table = getattr(scheduler, "alphas_cumprod", None)
        if table is None:
            raise CarvError(
                f"from_diffusers got a {type(scheduler).__name__}, which has no alphas_cumprod; it takes a diffusers "
                "scheduler, and NoiseSchedule.from_config a scheduler's config."
            )
        return cls(table)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """The schedule of a diffusers scheduler's config (`scheduler_config.json`), to the last bit.

        Args:
            config: num_train_timesteps (1000), beta_schedule ("linear"), beta_start (0.0001), beta_end (0.02),
                trained_betas, rescale_betas_zero_snr; other keys do not matter.

        Raises:
            CarvError: a flow-matching or EDM config, or a beta_schedule that is not known.
        """
        if not isinstance(config, Mapping):
            raise CarvError(
                f"from_config takes a mapping such as scheduler.config, not a {type(config).__name__}; for a scheduler "
                "use NoiseSchedule.from_diffusers(scheduler)."
            )
        refuse_flows(config)
        o = BetaOptions(**{name: config[name] for name in BetaOptions.declared() if config.get(name) is not None})
        betas = config.get("trained_betas")
        betas = named_betas(o) if betas is None else _table("trained_betas", betas).float()
        return cls.from_betas(zero_snr(betas) if o.rescale_betas_zero_snr else betas)

    def __repr__(self) -> str:
        first, last = float(self.alphas_cumprod[0]), float(self.alphas_cumprod[-1])
        return f"NoiseSchedule({self.num_train_timesteps} timesteps, abar {first:.4g} to {last:.4g}, {self.device})"

    @property
    def num_train_timesteps(self) -> int:
        """T; timesteps are 0 to T - 1."""
        return len(self.alphas_cumprod)

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.alphas_cumprod.device

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """The same schedule on `device`; itself if it is there already."""
        moved = self.alphas_cumprod.to(device)
        return self if moved is self.alphas_cumprod else NoiseSchedule(moved)

    def alpha(self, t: Tensor) -> Tensor:
        """sqrt(abar_t) for integer timesteps of any shape; the same shape back."""
        return self._alpha[t]

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - abar_t) for integer timesteps of any shape; the same shape back."""
        return self._sigma[t]

    def add_noise(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The noisy latents z_t, differentiable in z and eps.

        Args:
            z: (N, ...).
            eps: (N, ...).
            t: (N,) integers.

        Returns:
            (N, ...) in z's dtype.
        """
        shape = (-1, *[1] * (z.dim() - 1))
        return self._alpha[t].to(z.dtype).view(shape) * z + self._sigma[t].to(z.dtype).view(shape) * eps

    def v(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """`alpha_t eps - sigma_t z`, what a v-prediction is trained towards (arXiv 2202.00512).

        Args:
            z: (N, ...).
            eps: (N, ...).
            t: (N,) integers.
        """
        shape = (-1, *[1] * (z.dim() - 1))
        return self._alpha[t].to(z.dtype).view(shape) * eps - self._sigma[t].to(z.dtype).view(shape) * z

    def eps_from_v(self, z_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """`eps = alpha_t v + sigma_t z_t`, a v-prediction as a noise prediction.

        Args:
            z_t: (N, ...).
            v: (N, ...).
            t: (N,) integers.
        """
        alpha, sigma = self._rows(t, z_t)
        return alpha * v + sigma * z_t

    def z_from_eps(self, z_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """`z = (z_t - sigma_t eps) / alpha_t`, the clean latents that a noise prediction stands for.

        Args:
            z_t: (N, ...).
            eps: (N, ...).
            t: (N,) integers.
        """
        alpha, sigma = self._rows(t, z_t)
        return (z_t - sigma * eps) / alpha

    def z_from_v(self, z_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """`z = alpha_t z_t - sigma_t v`, the clean latents that a v-prediction stands for.

        Args:
            z_t: (N, ...).
            v: (N, ...).
            t: (N,) integers.
        """
        alpha, sigma = self._rows(t, z_t)
        return alpha * z_t - sigma * v

    def _rows(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t, sigma_t (N, 1, ...) in the type and place of like (N, ...)."""
        shape = (-1, *[1] * (like.dim() - 1))
        return self._alpha[t].to(like).view(shape), self._sigma[t].to(like).view(shape)

    def w(self, t: Tensor, strategy: str | Tensor = "sds") -> Tensor:
        """The weight that multiplies the residual at t, of t's shape.

        Args:
            t: integers.
            strategy: "sds" 1 - abar | "uniform" 1 | "fantasia3d" sqrt(abar) (1 - abar), as threestudio names them, or a
                table (T,) of one's own.

        Raises:
            CarvError: a name that does not exist, or a table of another length.
        """
        return self.weights(strategy)[t]

    def weights(self, strategy: str | Tensor = "sds") -> Tensor:
        """The weights w of all timesteps, (T,), see `w`."""
        if isinstance(strategy, Tensor):
            if strategy.shape != self.alphas_cumprod.shape:
                raise CarvError(
                    f"the table of weights has shape {tuple(strategy.shape)}; the schedule has "
                    f"{self.num_train_timesteps} timesteps, and each needs one weight."
                )
            return strategy.detach().to(self.device)
        if not isinstance(strategy, str) or strategy not in self._weights:
            raise CarvError(f"the weighting is {shown(strategy)}; it must be one of {', '.join(WEIGHTINGS)}.")
        return self._weights[strategy]


def named_betas(o: BetaOptions) -> Tensor:
    """(T,) betas as diffusers makes them. Raises CarvError for a name that it does not have."""
    name, T, start, end = o.beta_schedule, o.num_train_timesteps, o.beta_start, o.beta_end
    if name == "linear":
        return torch.linspace(start, end, T, dtype=torch.float32)
    if name == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, T, dtype=torch.float32) ** 2
    if name == "sigmoid":
        return torch.sigmoid(torch.linspace(-6, 6, T)) * (end - start) + start
    if name == "squaredcos_cap_v2":  # arXiv 2102.09672
        bar = [math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(T + 1)]
        return torch.tensor([min(1 - b / a, 0.999) for a, b in itertools.pairwise(bar)], dtype=torch.float32)
    raise CarvError(
        f"beta_schedule is {shown(name)}; it must be one of linear, scaled_linear, sigmoid, squaredcos_cap_v2. "
        "Any other schedule can be given as betas, to NoiseSchedule.from_betas."
    )


def zero_snr(betas: Tensor) -> Tensor:
    """Betas whose last abar is 0 (arXiv 2305.08891, algorithm 1): sqrt(abar) shifted and scaled."""
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    bar = ((root - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([bar[:1], bar[1:] / bar[:-1]])


def _table(name: str, value: Any) -> Tensor:
    """(T,) numbers in [0, 1] as a tensor of float32 or float64; CarvError for anything else."""
    if hasattr(value, "alphas_cumprod") or hasattr(value, "scheduler"):
        raise CarvError(
            f"{name} is a {type(value).__name__}; for a scheduler use NoiseSchedule.from_diffusers(scheduler)."
        )
    if isinstance(value, Mapping):
        raise CarvError(f"{name} is a mapping; for a scheduler's config use NoiseSchedule.from_config(config).")
    try:
        if not isinstance(value, Tensor):
            value = torch.as_tensor(value, dtype=None if hasattr(value, "dtype") else torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(value).__name__
        raise CarvError(f"{name} is a {kind}; it must be a tensor, an array or a list of (T,) numbers.") from error
    if value.dim() != 1 or len(value) < 1 or not value.is_floating_point():
        raise CarvError(
            f"{name} has shape {tuple(value.shape)} and type {value.dtype}; "
            "a noise schedule needs one row of floating-point numbers, one for each timestep."
        )
    value = value.detach()
    if not bool(((value >= 0) & (value <= 1)).all()):
        raise CarvError(f"{name} leaves [0, 1]: it goes from {float(value.min()):.4g} to {float(value.max()):.4g}.")
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def _check_falls(abar: Tensor) -> None:
    T, first, last = len(abar), float(abar[0]), float(abar[-1])
    if T > 1 and (bool((abar.diff() > 1e-6).any()) or not last < first):
        raise CarvError(
            f"alphas_cumprod goes from {first:.4g} to {last:.4g} and rises on the way; abar_t must fall with t. "
            "For betas use NoiseSchedule.from_betas(betas); a table from noise to data must be turned round."
        )
    # 1 - beta stays near 1, and takes smaller steps than its distance from 1
    if T >= 100 and float(abar[T // 2]) > 0.95 and first - float(abar[1]) < 0.5 * (1 - first):
        raise CarvError(
            f"alphas_cumprod is still {float(abar[T // 2]):.4g} half way, so these are 1 - beta_t, not their running "
            "product; use NoiseSchedule.from_betas(betas)."
        )


def refuse_flows(config: Mapping[str, Any], name: str = "") -> None:
    """CarvError where a diffusers scheduler's config, or its class's name, is of flow matching or EDM."""
    name = name or str(config.get("_class_name", ""))
    flow = config.get("use_flow_sigmas") or str(config.get("prediction_type")).startswith("flow")
    if flow or name.startswith(("FlowMatch", "EDM")) or "shift" in config or "sigma_data" in config:
        raise CarvError(
            f"{name or 'this scheduler'} adds noise as flow matching or EDM does, which is not "
            "z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps; take a model with a DDPM, DDIM or Euler scheduler."
        )
