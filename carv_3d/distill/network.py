"""Trainable copies of a teacher's UNet: the one-step generator, and the score of what it makes."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from carv_3d.core.arguments import FAILURES, described, fits
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError, shown
from carv_3d.teachers.denoiser import Denoiser, Prediction
from carv_3d.teachers.inputs import check_samples
from carv_3d.teachers.model_config import check_prediction_type

SomeNetwork = TypeVar("SomeNetwork", bound="Network")


class Network(Prediction, nn.Module):
    """A UNet called as unet(z_t, t, encoder_hidden_states=text, return_dict=False)[0], with its schedule.

    Everything of it is trained. Its results are float32 or wider, also within autocast.
    """

    def __init__(self, unet: nn.Module, schedule: NoiseSchedule, prediction_type: str = "epsilon") -> None:
        """Raises CarvError for a prediction type that is not known."""
        super().__init__()
        self.unet: Any = unet
        self.schedule, self.prediction_type = schedule, check_prediction_type(prediction_type, schedule)

    @classmethod
    def from_teacher(cls: type[SomeNetwork], teacher: Denoiser, **more: Any) -> SomeNetwork:
        """A copy of the teacher's UNet in float32, on its device; the teacher stays as it is.

        Raises CarvError for a teacher without one.
        """
        if not isinstance(getattr(teacher, "unet", None), nn.Module):
            raise CarvError(
                f"the teacher is {described(teacher)}, which has no UNet to copy: take a Stable Diffusion one."
            )
        unet = copy.deepcopy(teacher.unet).float().requires_grad_(True)
        return cls(unet, teacher.schedule, teacher.prediction_type, **more)

    def predict(self, z_t: Tensor, t: Tensor, text_emb: Tensor) -> Tensor:
        """The UNet's own prediction: (N, C, h, w), t (N,) integers, (N, L, D) -> (N, C, h, w), differentiable."""
        given, time = self.schedule.network_input(z_t, t)
        dtype = next(self.unet.parameters()).dtype  # whatever the text's is, and the UNet's
        try:
            prediction: Tensor = self.unet(
                given.to(dtype), time, encoder_hidden_states=text_emb.to(dtype), return_dict=False
            )[0]
        except FAILURES:
            check_samples(z_t, t, text_emb)
            width = getattr(getattr(self.unet, "config", None), "cross_attention_dim", None)
            if isinstance(width, int) and text_emb.shape[-1] != width:
                raise CarvError(f"the text is {text_emb.shape[-1]} wide and the UNet needs {width}.") from None
            raise
        return prediction.to(torch.promote_types(z_t.dtype, torch.float32))


class OneStepGenerator(Network):
    """z = (eps - sigma_t eps_hat(eps, t)) / alpha_t, or alpha_t eps - sigma_t v(eps, t), at one fixed t.

    eps takes the place of z_t at t = T - 1, where a teacher's own sampling begins (arXiv 2311.18828, section 3.1).
    """

    def __init__(
        self, unet: nn.Module, schedule: NoiseSchedule, prediction_type: str = "epsilon", t: int | None = None
    ) -> None:
        """t: the timestep that the UNet is given, T - 1 unless given. Raises CarvError for one outside the schedule."""
        super().__init__(unet, schedule, prediction_type)
        self.t = schedule.num_train_timesteps - 1 if t is None else t
        if not fits(self.t, int) or not 0 <= self.t < schedule.num_train_timesteps:
            raise CarvError(f"t is {shown(t)}; the teacher's timesteps are 0 .. {schedule.num_train_timesteps - 1}.")

    def forward(self, eps: Tensor, text_emb: Tensor) -> Tensor:
        """Clean latents z (N, C, h, w) from eps alike and text (N, L, D), differentiable in the parameters."""
        t = torch.full((len(eps),), self.t, device=eps.device)
        return self.z_hat(eps, t, text_emb)


class FakeScore(Network):
    """The score of what the generator makes, trained on it while it changes (arXiv 2311.18828, section 3.2)."""
