"""DDIM inversion (arXiv 2010.02502, 2405.15891): from clean latents up the noise levels, by the teacher's own noise.

    z_hat = (x - sigma_s eps_hat(x, s)) / alpha_s,    x' = alpha_t z_hat + sigma_t eps_hat(x, s) + eta std(s, t) xi

The steps s -> t follow a grid of timesteps. One chain up the grid serves every draw of a render: a draw at t leaves it
at the last timestep of the grid below t, by a step of its own that needs no further prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError, shown

Predicted = Callable[[Tensor, int], Tensor]  # (x (R, C, h, w), timestep) -> eps_hat (R, C, h, w)
Noise = Callable[[Tensor], Tensor]  # of the shape of what it is given


@dataclass(frozen=True)
class InversionGrid:
    """Where an inversion goes, as diffusers' DDIMInverseScheduler has it.

    Attributes:
        timesteps: from where it begins, one step below the first noise level, which is as a rule negative.
        levels: abar at -1 (of the clean latents) and at 0 .. T - 1: the entry of timestep t is t + 1.
    """

    timesteps: tuple[int, ...]
    levels: NoiseSchedule

    @classmethod
    def from_config(cls, schedule: NoiseSchedule, config: Mapping[str, Any], num_steps: int) -> InversionGrid:
        """A grid of `num_steps` steps over all timesteps.

        Args:
            schedule: of the model.
            config: scheduler_config.json; timestep_spacing, steps_offset, set_alpha_to_one and clip_sample are read.
            num_steps: at most T.

        Raises:
            CarvError: a schedule or config that has no such inversion.
        """
        T, spacing = schedule.num_train_timesteps, config.get("timestep_spacing", "leading")
        if schedule.family != "vp":
            raise CarvError(f"DDIM inversion is for models with betas, and this is one of family {schedule.family}.")
        if num_steps > T:
            raise CarvError(f"inversion_n_steps is {num_steps}, and the model has {T} timesteps: lower it.")
        if config.get("clip_sample", True):
            raise CarvError("the scheduler's clip_sample is true, which cuts latents: set it to false in its config.")
        if spacing == "leading":
            length: float = T // num_steps
            timesteps = [i * int(length) + int(config.get("steps_offset", 0)) for i in range(num_steps)]
        elif spacing == "trailing":
            length = T / num_steps
            timesteps = [round(T - i * length) - 1 for i in reversed(range(num_steps))]
        else:
            raise CarvError(f"timestep_spacing is {shown(spacing)}; DDIM inversion is for leading and trailing.")
        abar = schedule.alphas_cumprod
        before = torch.ones_like(abar[:1]) if config.get("set_alpha_to_one", True) else abar[:1]
        return cls((int(timesteps[0] - length), *timesteps), NoiseSchedule(torch.cat([before, abar])))

    def invert(
        self, z: Tensor, t: Tensor, last: Tensor, xi: Tensor, eps_hat: Predicted, eta: float, noise: Noise
    ) -> Tensor:
        """Latents at the noise level `last`, for K draws of each of R renders.

        Args:
            z: (R, C, h, w), clean.
            t: (R, K) timesteps; the chain of a draw is left at the last timestep of the grid below it.
            last: (R, K) timesteps from t on, where the draw's own step ends.
            xi: (R, K, C, h, w), noise of that step.
            eps_hat: the teacher's noise; called once for each timestep of the grid that is needed.
            eta: share of DDPM's noise that each step adds on top.
            noise: of the chain's steps, which the draws of a render share.

        Returns:
            (R, K, C, h, w).
        """
        grid = torch.tensor(self.timesteps[1:], device=t.device)
        leaves = torch.searchsorted(grid, t.contiguous())  # how many timesteps of the grid lie below t
        out, x, end = xi.clone(), z, int(leaves.max())
        for i, s in enumerate(self.timesteps[: end + 1]):
            eps = eps_hat(x, s)
            here = leaves == i
            r = here.nonzero()[:, 0]
            out[here] = self.step(x[r], eps[r], s, last[here], eta * xi[here])
            if i < end:
                after = torch.full((len(x),), self.timesteps[i + 1], device=t.device)
                x = self.step(x, eps, s, after, eta * noise(x) if eta else None)
        return out

    def step(self, x: Tensor, eps: Tensor, s: int, t: Tensor, xi: Tensor | None) -> Tensor:
        """A step of x (N, C, h, w) with the noise eps from s to t (N,), plus std(s, t) xi; s below 0: x is clean."""
        at = t.new_full(t.shape, max(s, -1) + 1)
        out = self.levels.add_noise(self.levels.z_from("epsilon", x, eps, at), eps, t + 1)
        if xi is None:
            return out
        abar_s, abar_t = (self.levels.alphas_cumprod[i].to(x).view(-1, 1, 1, 1) for i in (at, t + 1))
        # DDPM's variance of the way back, DDIM's equation 16
        return out + ((1 - abar_s) / (1 - abar_t) * (1 - abar_t / abar_s)).sqrt() * xi

    def eps_from(self, kind: str, x: Tensor, prediction: Tensor, s: int) -> Tensor:
        """The noise that a prediction (N, C, h, w) of a kind stands for, at the timestep s."""
        at = torch.full((len(x),), max(s, -1) + 1, device=x.device)
        return self.levels.eps_from(kind, x, prediction, at)
