"""The teacher's noise schedule: alpha_t, sigma_t and the objective's weight w(t), as tables over t."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from carv_3d.errors import CarvError

WEIGHTINGS = ("sds", "uniform", "fantasia3d")


class NoiseSchedule:
    """`z_t = alpha_t z + sigma_t eps`, alpha_t = sqrt(abar_t), sigma_t = sqrt(1 - abar_t).

    Timesteps are the integers 0 .. num_train_timesteps - 1.
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        """alphas_cumprod: (T,) abar_t in [0, 1], float32 or float64, on any device. Raises CarvError."""
        if alphas_cumprod.dim() != 1 or len(alphas_cumprod) < 1 or not alphas_cumprod.is_floating_point():
            raise CarvError(
                f"alphas_cumprod has shape {tuple(alphas_cumprod.shape)} and type {alphas_cumprod.dtype}; "
                "a noise schedule needs one row of floating-point numbers, one for each timestep."
            )
        self.alphas_cumprod = alphas_cumprod.detach()
        if not bool(((self.alphas_cumprod >= 0) & (self.alphas_cumprod <= 1)).all()):
            raise CarvError("alphas_cumprod leaves [0, 1]; give the cumulative product, not the betas.")
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
        """Stable Diffusion's schedule: sqrt(beta) is linear in t. Equal to diffusers' to the last bit."""
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float32) ** 2
        return cls(torch.cumprod(1.0 - betas, dim=0))

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
        """`z_t`, differentiable in z and eps: z, eps (N, ...), t (N,) integers -> (N, ...) in z's dtype."""
        shape = (-1, *[1] * (z.dim() - 1))
        return self._alpha[t].to(z.dtype).view(shape) * z + self._sigma[t].to(z.dtype).view(shape) * eps

    def v(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """`alpha_t eps - sigma_t z`, what a v-prediction is trained towards; shapes as of `add_noise`."""
        shape = (-1, *[1] * (z.dim() - 1))
        return self._alpha[t].to(z.dtype).view(shape) * eps - self._sigma[t].to(z.dtype).view(shape) * z

    def eps_from_v(self, z_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """`eps = alpha_t v + sigma_t z_t`, a v-prediction as a noise prediction; shapes as of `add_noise`."""
        alpha, sigma = self._rows(t, z_t)
        return alpha * v + sigma * z_t

    def z_from_eps(self, z_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """`z = (z_t - sigma_t eps) / alpha_t`, the clean latents that a noise prediction stands for."""
        alpha, sigma = self._rows(t, z_t)
        return (z_t - sigma * eps) / alpha

    def z_from_v(self, z_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """`z = alpha_t z_t - sigma_t v`, the clean latents that a v-prediction stands for."""
        alpha, sigma = self._rows(t, z_t)
        return alpha * z_t - sigma * v

    def _rows(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t, sigma_t (N, 1, ...) in the type and place of like (N, ...)."""
        shape = (-1, *[1] * (like.dim() - 1))
        return self._alpha[t].to(like).view(shape), self._sigma[t].to(like).view(shape)

    def w(self, t: Tensor, strategy: str | Tensor = "sds") -> Tensor:
        """The weight that multiplies the residual at t, of t's shape.

        strategy: "sds" 1 - abar | "uniform" 1 | "fantasia3d" sqrt(abar) (1 - abar), as threestudio names
            them, or a table (T,) of one's own. Raises CarvError for any other name.
        """
        return self.weights(strategy)[t]

    def weights(self, strategy: str | Tensor = "sds") -> Tensor:
        """w over all timesteps, (T,), see `w`."""
        if isinstance(strategy, Tensor):
            if strategy.shape != self.alphas_cumprod.shape:
                raise CarvError(
                    f"the table of weights has shape {tuple(strategy.shape)}; the schedule has "
                    f"{self.num_train_timesteps} timesteps, and each needs one weight."
                )
            return strategy.detach().to(self.device)
        if strategy not in self._weights:
            raise CarvError(f"the weighting is {strategy!r}; it must be one of {', '.join(WEIGHTINGS)}.")
        return self._weights[strategy]
