"""The model of the renders in variational score distillation: a frozen denoiser with a LoRA that is trained on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from carv_3d.core.arguments import checked
from carv_3d.errors import CarvError
from carv_3d.teachers.denoiser import Denoiser, Prediction
from carv_3d.teachers.lora import CameraLora


class LoraScore(Prediction):
    """A `carv_3d.guidance.vsd.TrainedScore`. `lora` is a torch module: the host trains it, saves it and moves it."""

    brief = ("denoiser",)

    @checked
    def __init__(self, denoiser: Denoiser, rank: int = 4, camera_width: int = 16) -> None:
        """A fresh LoRA on a denoiser.

        Args:
            denoiser: it may be the teacher itself, which is left as it is outside of this object's calls.
            rank: of each layer's update.
            camera_width: W, of the camera's numbers; 0 for no camera.

        Raises:
            CarvError: a rank below 1, or a UNet without attention.
        """
        self.denoiser = denoiser
        self.schedule, self.prediction_type = denoiser.schedule, denoiser.prediction_type
        # an offloaded UNet's own parameters have no place
        self.lora = CameraLora(denoiser.unet, rank, camera_width).to(denoiser.device)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return list(self.lora.parameters())

    def predict(self, z_t: Tensor, t: Tensor, text_emb: Tensor, camera: Tensor) -> Tensor:
        """What the denoiser with the LoRA predicts, eps or v, differentiable in the LoRA's parameters.

        Args:
            z_t: (N, C, h, w).
            t: (N,) integers.
            text_emb: (N, L, D).
            camera: (N, W), zeros for none.

        Returns:
            (N, C, h, w).
        """
        with self.lora.active(camera):
            return self.denoiser.predict(z_t, t, text_emb)


def check_pair(teacher: Any, lora_score: Denoiser) -> None:
    """Raises CarvError unless both speak of the same latents, noise levels and text."""
    names = f"{teacher.name or 'the teacher'} and {lora_score.name or 'the LoRA model'}"
    fix = "take both from one series (Stable Diffusion 2.1 base and 2.1, say), or the same for both"
    for key, what in (("in_channels", "latents of {} channels"), ("cross_attention_dim", "text {} wide")):
        ours, theirs = (getattr(model.unet.config, key) for model in (teacher, lora_score))
        if ours != theirs:
            raise CarvError(f"{names} do not fit: they take {what.format(ours)} and {what.format(theirs)}; {fix}.")
    first, second = teacher.schedule.alphas_cumprod, lora_score.schedule.alphas_cumprod.to(teacher.schedule.device)
    if first.shape != second.shape or not torch.allclose(first, second, atol=1e-4):
        raise CarvError(f"{names} do not fit: their noise schedules differ; {fix}.")
