"""A denoiser whose per-item gradient is known in closed form, and items for it."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from carv_3d.core.schedule import NoiseSchedule


class Scaling(nn.Module):
    """eps_hat = a z_t, elementwise. With loss = mean (a z_t - eps)^2 over the D numbers of an item,

    dloss/da_j = 2/D (a_j z_tj - eps_j) z_tj,     E_eps = 2/D (a_j (alpha^2 z_j^2 + sigma^2) - sigma).
    """

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        super().__init__()
        self.a = nn.Parameter(0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)))

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        return self.a * z_t

    def moments(self, z: Tensor, schedule: NoiseSchedule, pair: bool = False) -> tuple[Tensor, Tensor]:
        """(T, D) mean and variance over eps of the gradient at each t; of a pair (eps, -eps) its mean's.

        The gradient is quadratic in eps; a pair has no linear part, and all of the square's.
        """
        t = torch.arange(schedule.num_train_timesteps)
        alpha, sigma = schedule.alpha(t).double()[:, None], schedule.sigma(t).double()[:, None]
        a, z = self.a.detach().double().flatten(), z.double().flatten()
        square, linear = a * sigma**2 - sigma, (2 * a * sigma - 1) * alpha * z
        variance = 2 * square**2 + (0 if pair else linear**2)
        return 2 / len(a) * (square + a * alpha**2 * z**2), (2 / len(a)) ** 2 * variance

    def expected_gradient(self, z: Tensor, schedule: NoiseSchedule) -> Tensor:
        return self.moments(z, schedule)[0].mean(0)


class TensorItems:
    """Items that are tensors already."""

    def __init__(self, z: Tensor, names: str = "item") -> None:
        self.z, self.names = z, names

    def __len__(self) -> int:
        return len(self.z)

    def key(self, index: int) -> str:
        return f"{self.names}-{index}"

    def latents(self, index: int) -> Tensor:
        return self.z[index]

    def condition(self, index: int) -> None:
        return None

    def fingerprint(self) -> str:
        return hashlib.sha256(self.z.numpy().tobytes()).hexdigest()[:16]
