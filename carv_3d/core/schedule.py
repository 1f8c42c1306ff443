"""A teacher's noise schedule: alpha_t, sigma_t, what a prediction stands for, and the objective's weight w(t)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from carv_3d.core.arguments import checked
from carv_3d.core.options import Weighting
from carv_3d.core.schedule_config import read_config, scheduler_parts
from carv_3d.core.schedule_tables import (
    check_agree,
    check_falls,
    check_size,
    checked_table,
    edm_sigmas,
    entries_at,
    flow_sigmas,
)
from carv_3d.errors import CarvError, shown

WEIGHTINGS = get_args(Weighting)
MIN_SNR_GAMMA = 5.0  # arXiv 2303.09556
PredictionType = Literal["epsilon", "sample", "v_prediction", "flow_prediction", "edm", "edm_v"]
PREDICTION_TYPES = get_args(PredictionType)


class NoiseSchedule:
    """`z_t = alpha_t z + sigma_t eps`, as tables over the timesteps t = 0 .. T - 1, noisier with t.

        NoiseSchedule.from_diffusers(pipe.scheduler)
        NoiseSchedule.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
        NoiseSchedule(alphas_cumprod), NoiseSchedule.from_betas(betas), NoiseSchedule.scaled_linear()
        NoiseSchedule.flow(shift=3.0), NoiseSchedule.edm()

    | family | alpha_t | sigma_t |
    |---|---|---|
    | "vp", variance preserving | sqrt(abar_t) | sqrt(1 - abar_t) |
    | "flow", flow matching (arXiv 2210.02747) | 1 - sigma_t | shifted (t + 1) / T |
    | "edm" (arXiv 2206.00364) | 1 | from sigma_min to sigma_max |

    Attributes:
        family: one of these three.
        prediction_type: what a model with this scheduler predicts, where a scheduler or its config said it.
        alphas_cumprod: (T,) abar_t; outside of "vp" SNR / (1 + SNR), the abar_t of the same signal-to-noise ratio.
        times: (T,) what the network is given for t; None where it is t itself.
        continuous: whether t is a real number, as of `ContinuousSchedule`.
    """

    continuous = False

    def __init__(self, alphas_cumprod: Tensor | Sequence[float] | Any) -> None:
        """A variance-preserving schedule from its table.

        Args:
            alphas_cumprod: (T,) abar_t in [0, 1], which falls with t: a tensor on any device, a NumPy array or a list.

        Raises:
            CarvError: another kind of thing, betas, or a table that rises.
        """
        abar = checked_table("alphas_cumprod", alphas_cumprod)
        check_falls(abar)
        self._set("vp", abar, abar.sqrt(), (1 - abar).sqrt())

    def _set(
        self, family: str, abar: Tensor, alpha: Tensor, sigma: Tensor, times: Tensor | None = None,
        sigma_data: float = 0.5,
    ) -> None:  # fmt: skip
        self.family, self.alphas_cumprod, self._alpha, self._sigma = family, abar, alpha, sigma
        self.times, self.sigma_data = times, sigma_data
        self.prediction_type: str | None = None
        self.estimators: dict[int, dict[Any, Any]] = {}  # of `sds_loss`, by thread and options
        snr = abar / (1 - abar)
        self._weights = {
            "sds": 1 - abar,
            "uniform": torch.ones_like(abar),
            "fantasia3d": abar.sqrt() * (1 - abar),
            "inverse_snr": 1 / snr,
            "min_snr": (MIN_SNR_GAMMA / snr).clamp_max(1),
            "one_minus_alpha": 1 - abar.sqrt(),
            "fantasia3d_alpha": abar**0.25 * (1 - abar.sqrt()),
            "sigma_over_alpha": snr**-0.5,
        }

    @classmethod
    def _made(cls, family: str, alpha: Tensor, sigma: Tensor, times: Tensor, sigma_data: float = 0.5) -> NoiseSchedule:
        made = cls.__new__(cls)
        made._set(family, alpha**2 / (alpha**2 + sigma**2), alpha, sigma, times, sigma_data)
        made.prediction_type = "edm" if family == "edm" else "flow_prediction"
        return made

    @classmethod
    @checked
    def flow(cls, T: int = 1000, shift: float = 1.0, scale: float | None = None) -> NoiseSchedule:
        """Flow matching, `z_t = (1 - s) z + s eps`; equal to diffusers' FlowMatchEulerDiscreteScheduler.

        Args:
            T: timesteps; before the shift s is 1/T, 2/T, ... 1.
            shift: s becomes shift s / (1 + (shift - 1) s), arXiv 2403.03206, section 5.3.2. A dynamic shift is
                `exp(mu)` ("exponential") or `mu` ("linear").
            scale: what the network is given is `scale * s`; T unless given.

        Raises:
            CarvError: a T below 1, or a shift or scale that is not above 0.
        """
        sigma = flow_sigmas(T, shift)
        times = sigma * check_size("scale", T if scale is None else scale)
        return cls._made("flow", 1 - sigma, sigma, times)

    @classmethod
    @checked
    def edm(
        cls, T: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5,
        rho: float = 7.0, spacing: str = "karras",
    ) -> NoiseSchedule:  # fmt: skip
        """EDM's, `z_t = z + sigma_t eps`; equal to diffusers' EDMEulerScheduler. The network is given ln(sigma_t) / 4.

        Args:
            T: timesteps.
            sigma_min: at t = 0.
            sigma_max: at t = T - 1.
            sigma_data: standard deviation of the data, for the preconditioning of "edm" and "edm_v" predictions.
            rho: of the "karras" spacing.
            spacing: "karras" (equation 5) or "exponential".

        Raises:
            CarvError: numbers out of order, or a spacing that is not known.
        """
        sigma = edm_sigmas(T, sigma_min, sigma_max, rho, spacing)
        size = check_size("sigma_data", sigma_data)
        return cls._made("edm", torch.ones_like(sigma), sigma, sigma.log() / 4, size)

    @classmethod
    def scaled_linear(cls, T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> NoiseSchedule:
        """Stable Diffusion's schedule: sqrt(beta) is linear in t. Equal to diffusers' to the last bit.

        Args:
            T: the number of timesteps.
            beta_start: beta at t = 0.
            beta_end: beta at t = T - 1.
        """
        _, arguments, _ = read_config(
            {"beta_schedule": "scaled_linear", "num_train_timesteps": T, "beta_start": beta_start, "beta_end": beta_end}
        )
        return cls.from_betas(**arguments)

    @classmethod
    def from_betas(cls, betas: Tensor | Sequence[float] | Any) -> NoiseSchedule:
        """abar_t = prod_(s <= t) (1 - beta_s).

        Args:
            betas: (T,) in [0, 1].

        Raises:
            CarvError: no such table, or abar in place of betas.
        """
        table = checked_table("betas", betas)
        if float(table[0]) > 0.5:
            raise CarvError(
                f"betas begin at {float(table[0]):.4g}, so these are no betas; for abar_t use "
                "NoiseSchedule(alphas_cumprod)."
            )
        return cls(torch.cumprod(1.0 - table, dim=0))

    @classmethod
    def from_diffusers(cls, scheduler: Any) -> NoiseSchedule:
        """The schedule of a diffusers scheduler (DDPM, Euler, DPM-Solver, flow matching, EDM), whatever its solver.

        Raises:
            CarvError: a scheduler of another class, or something else.
        """
        name, config, table = scheduler_parts(scheduler)
        if config is None:
            return cls(table)
        return cls._read({**config, "_class_name": name}, table)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """The schedule of a diffusers scheduler's config (`scheduler_config.json`), to the last bit.

        Args:
            config: as diffusers writes it. Without a _class_name it is read as betas: num_train_timesteps (1000),
                beta_schedule ("linear"), beta_start (0.0001), beta_end (0.02), trained_betas, rescale_betas_zero_snr.

        Raises:
            CarvError: a class, beta_schedule or prediction_type that is not known, or a value that cannot be.
        """
        return cls._read(config)

    @classmethod
    def _read(cls, config: Mapping[str, Any], table: Any = None) -> NoiseSchedule:
        """table: abar_t of a scheduler with betas, where it is at hand."""
        family, arguments, kind = read_config(config)
        made = cls(table) if family == "vp" and table is not None else getattr(cls, MAKERS[family])(**arguments)
        made.prediction_type = kind
        return made

    def __repr__(self) -> str:
        at = self.alphas_cumprod
        abar = "without data" if at.is_meta else f"abar {float(at[0]):.4g} to {float(at[-1]):.4g}"
        count = f"{'' if self.family == 'vp' else self.family + ', '}{self.num_train_timesteps} timesteps"
        return f"{type(self).__name__}({count}, {abar}, {self.device})"

    @property
    def num_train_timesteps(self) -> int:
        """T; timesteps are 0 to T - 1."""
        return len(self.alphas_cumprod)

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.alphas_cumprod.device

    @checked
    def to(self, device: torch.device | str) -> NoiseSchedule:
        """The same schedule on `device`; itself if it is there already."""
        abar = self.alphas_cumprod.to(device)
        if abar is self.alphas_cumprod:
            return self
        moved, times = type(self).__new__(type(self)), None if self.times is None else self.times.to(device)
        moved._set(self.family, abar, self._alpha.to(device), self._sigma.to(device), times, self.sigma_data)
        moved.prediction_type = self.prediction_type
        return moved

    def alpha(self, t: Tensor) -> Tensor:
        """alpha_t for integer timesteps of any shape; the same shape back."""
        return entries_at(self._alpha, t)

    def sigma(self, t: Tensor) -> Tensor:
        """sigma_t for integer timesteps of any shape; the same shape back."""
        return entries_at(self._sigma, t)

    def snr(self, t: Tensor) -> Tensor:
        """alpha_t^2 / sigma_t^2 for integer timesteps of any shape; the same shape back."""
        return self.alpha(t) ** 2 / self.sigma(t) ** 2

    def norm(self, t: Tensor) -> Tensor:
        """sqrt(alpha_t^2 + sigma_t^2), of t's shape: z_t divided by it is variance preserving, at the same SNR."""
        if self.family == "vp":
            return torch.ones_like(self.alpha(t))
        return (self.alpha(t) ** 2 + self.sigma(t) ** 2).sqrt()

    def add_noise(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The noisy latents z_t, differentiable in z and eps.

        Args:
            z: (N, ...).
            eps: (N, ...).
            t: (N,) integers.

        Returns:
            (N, ...) in z's dtype.
        """
        alpha, sigma = self._per_sample(t, z=z, eps=eps)
        return alpha * z + sigma * eps

    def network_input(self, z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is given for z_t and t: under EDM z_t / sqrt(sigma_t^2 + sigma_data^2), else z_t itself.

        Args:
            z_t: (N, ...).
            t: (N,) integers.

        Returns:
            (N, ...) in z_t's dtype, and (N,) times: t itself, or its entry of `times`.
        """
        _, sigma = self._per_sample(t, z_t=z_t)
        times = None if self.times is None else self._times(t)
        if self.family == "edm":
            z_t = z_t / (sigma**2 + self.sigma_data**2).sqrt()
        return z_t, t if times is None else times

    def _times(self, t: Tensor) -> Tensor:
        assert self.times is not None
        return entries_at(self.times, t)

    def target(self, kind: str, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What a network of a prediction type is trained towards.

        | kind | target |
        |---|---|
        | "epsilon", "sample" | eps, z |
        | "v_prediction" (arXiv 2202.00512) | alpha_t eps - sigma_t z, for "vp" |
        | "flow_prediction" (arXiv 2210.02747) | eps - z |
        | "edm", "edm_v" (arXiv 2206.00364, equation 7) | F, or -F, with z = c_skip z_t + c_out F, for "edm" |

        Args:
            kind: one of these names.
            z: (N, ...).
            eps: (N, ...).
            t: (N,) integers.

        Returns:
            (N, ...), differentiable in z and eps.

        Raises:
            CarvError: a kind that is not known, or is not of this schedule's family.
        """
        z_factor, eps_factor, _, _, _ = self._parts(kind, t, z=z, eps=eps)
        if kind == "epsilon":
            return eps
        return eps_factor * eps + z_factor * z

    def eps_from(self, kind: str, z_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The noise that a prediction stands for.

        Args:
            kind: of prediction, and what is raised, as of `target`.
            z_t: (N, ...).
            prediction: (N, ...), differentiable.
            t: (N,) integers.
        """
        z_factor, _, alpha, _, whole = self._parts(kind, t, z_t=z_t, prediction=prediction)
        if kind == "epsilon":
            return prediction
        eps = alpha * prediction - z_factor * z_t
        return eps if whole is None else eps / whole

    def z_from(self, kind: str, z_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The clean latents that a prediction stands for; of epsilon they are infinite where alpha_t is 0.

        Args:
            kind: of prediction, and what is raised, as of `target`.
            z_t: (N, ...).
            prediction: (N, ...), differentiable.
            t: (N,) integers.
        """
        _, eps_factor, _, sigma, whole = self._parts(kind, t, z_t=z_t, prediction=prediction)
        z = eps_factor * z_t - sigma * prediction
        return z if whole is None else z / whole

    def _parts(self, kind: str, t: Tensor, **given: Tensor) -> tuple[Any, Any, Tensor, Tensor, Tensor | None]:
        """z_factor and eps_factor of a prediction, alpha, sigma, eps_factor alpha - z_factor sigma (None: 1)."""
        alpha, sigma = self._per_sample(t, **given)
        if kind == "epsilon":
            return 0.0, 1.0, alpha, sigma, alpha
        if kind == "sample":
            return 1.0, 0.0, alpha, sigma, -sigma
        if kind == "v_prediction" and self.family == "vp":
            return -sigma, alpha, alpha, sigma, None
        if kind == "flow_prediction":
            return -1.0, 1.0, alpha, sigma, None if self.family == "flow" else alpha + sigma
        if kind in ("edm", "edm_v") and self.family == "edm":
            spread = (sigma**2 + self.sigma_data**2).sqrt()
            sign = 1 if kind == "edm" else -1
            z_factor, eps_factor = sign * sigma / (spread * self.sigma_data), -sign * self.sigma_data / spread
            return z_factor, eps_factor, alpha, sigma, eps_factor - z_factor * sigma
        if kind in PREDICTION_TYPES:
            raise CarvError(f"prediction_type is {shown(kind)}, which a schedule of family {self.family!r} lacks.")
        raise CarvError(f"prediction_type is {shown(kind)}; it must be one of {', '.join(PREDICTION_TYPES)}.")

    def _per_sample(self, t: Tensor, **given: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t, sigma_t (N, 1, ...) in the type and place of the first of the samples (N, ...), which must agree."""
        alpha, sigma = self._both(t, given)
        like = next(iter(given.values()))
        shape = (-1, *[1] * (like.dim() - 1))
        return alpha.to(like).view(shape), sigma.to(like).view(shape)

    def _both(self, t: Tensor, given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        check_agree(t, **given)
        return entries_at(self._alpha, t), entries_at(self._sigma, t)

    def w(self, t: Tensor, strategy: str | Tensor = "sds") -> Tensor:
        """The weight that multiplies the residual at t, of t's shape.

        Args:
            t: integers.
            strategy: "sds" 1 - abar | "uniform" 1 | "fantasia3d" sqrt(abar) (1 - abar), as threestudio names them |
                "inverse_snr" 1 / SNR | "min_snr" min(SNR, 5) / SNR (arXiv 2303.09556) | "one_minus_alpha"
                1 - sqrt(abar) and "fantasia3d_alpha" abar^(1/4) (1 - sqrt(abar)), of threestudio's unified guidance |
                "sigma_over_alpha", under which w (eps_hat - eps) is z - z_hat | or a table (T,) of one's own.

        Raises:
            CarvError: a name that does not exist, or a table of another length.
        """
        return entries_at(self.weights(strategy), t)

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
        if strategy in ("inverse_snr", "sigma_over_alpha") and float(self.alphas_cumprod[-1]) == 0:
            raise CarvError(f"the weighting {strategy} is infinite at this schedule's last timestep; take min_snr.")
        return self._weights[strategy]


MAKERS = {"vp": "from_betas", "flow": "flow", "edm": "edm"}  # constructors, by family
