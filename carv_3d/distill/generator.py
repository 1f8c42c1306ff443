"""The one-step generator: a UNet that turns pure noise into clean latents at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.distill.network import Network
from carv_3d.errors import CarvError


class OneStepGenerator(Network):
    """z = (eps - sigma_t eps_hat(eps, t)) / alpha_t, or alpha_t eps - sigma_t v(eps, t), at one fixed t.

    eps takes the place of z_t at t = T - 1, where a teacher's own sampling begins (arXiv 2311.18828, section 3.1).
    """

    def __init__(
        self, unet: nn.Module, schedule: NoiseSchedule, prediction_type: str = "epsilon", t: int | None = None
    ) -> None:
        """t: the timestep that the UNet is told, T - 1 unless given. Raises CarvError for one outside the schedule."""
        super().__init__(unet, schedule, prediction_type)
        self.t = schedule.num_train_timesteps - 1 if t is None else t
        if not 0 <= self.t < schedule.num_train_timesteps:
            raise CarvError(f"t is {t}; the teacher's timesteps are 0 .. {schedule.num_train_timesteps - 1}.")

    def forward(self, eps: Tensor, text_emb: Tensor) -> Tensor:
        """Clean latents z (N, C, h, w) from eps alike and text (N, L, D), differentiable in the parameters."""
        t = torch.full((len(eps),), self.t, device=eps.device)
        return self.z_hat(eps, t, text_emb)
