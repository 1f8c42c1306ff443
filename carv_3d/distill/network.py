"""A trainable copy of a teacher's UNet, and what its prediction stands for."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.teachers.denoiser import Denoiser, Prediction, check_prediction_type

SomeNetwork = TypeVar("SomeNetwork", bound="Network")


class Network(Prediction, nn.Module):
    """A UNet called as unet(z_t, t, encoder_hidden_states=text, return_dict=False)[0], with its schedule.

    Everything of it is trained. Its results are float32 or wider, also within autocast.
    """

    def __init__(self, unet: nn.Module, schedule: NoiseSchedule, prediction_type: str = "epsilon") -> None:
        """Raises CarvError for a prediction type that is not known."""
        super().__init__()
        self.unet: Any = unet
        self.schedule, self.prediction_type = schedule, check_prediction_type(prediction_type)

    @classmethod
    def from_teacher(cls: type[SomeNetwork], teacher: Denoiser, **more: Any) -> SomeNetwork:
        """A copy of the teacher's UNet in float32, on its device; the teacher stays as it is."""
        unet = copy.deepcopy(teacher.unet).float().requires_grad_(True)
        return cls(unet, teacher.schedule, teacher.prediction_type, **more)

    def predict(self, z_t: Tensor, t: Tensor, text_emb: Tensor) -> Tensor:
        """The UNet's own prediction: (N, C, h, w), t (N,) integers, (N, L, D) -> (N, C, h, w), differentiable."""
        text_emb = text_emb.to(next(self.unet.parameters()).dtype)  # a half-precision teacher's text
        prediction: Tensor = self.unet(z_t, t, encoder_hidden_states=text_emb, return_dict=False)[0]
        return prediction.to(torch.promote_types(z_t.dtype, torch.float32))


class FakeScore(Network):
    """The score of what the generator makes, trained on it while it changes (arXiv 2311.18828, section 3.2)."""
