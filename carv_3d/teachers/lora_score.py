"""The model of the renders in variational score distillation: a frozen denoiser with a LoRA that is trained on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError
from carv_3d.teachers.denoiser import Denoiser
from carv_3d.teachers.lora import CameraLora


class LoraScore:
    """A `carv_3d.guidance.vsd.LoRA score`. `lora` is a torch module: the host trains it, saves it and moves it."""

    def __init__(self, denoiser: Denoiser, rank: int = 4) -> None:
        """denoiser: it may be the teacher itself, which is left as it is outside of this object's calls."""
        self.denoiser = denoiser
        # an offloaded UNet's own parameters have no place
        self.lora = CameraLora(denoiser.unet, rank).to(denoiser.device)

    @property
    def schedule(self) -> NoiseSchedule:
        """The teacher's."""
        return self.denoiser.schedule

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return list(self.lora.parameters())

    def eps_hat(self, z_t: Tensor, t: Tensor, text_emb: Tensor, camera: Tensor) -> Tensor:
        """(N, C, h, w), t (N,), text (N, L, D), camera (N, 16) -> the noise prediction (N, C, h, w)."""
        with self.lora.active(camera):
            return self.denoiser.eps_hat(z_t, t, text_emb)

    def squared_errors(self, z: Tensor, t: Tensor, eps: Tensor, text_emb: Tensor, camera: Tensor) -> Tensor:
        """(N,) |prediction - target|^2 of z (N, C, h, w) under noise eps, in what the model itself predicts (eps or v).

        Differentiable in `parameters`. Summed over a row, not averaged: half precision keeps such gradients.
        """
        z_t = self.schedule.add_noise(z, eps, t)
        with self.lora.active(camera):
            prediction = self.denoiser.predict(z_t, t, text_emb)
        return (prediction.float() - self.denoiser.target(z, eps, t).float()).square().flatten(1).sum(1)


def check_pair(teacher: Any, lora_score: Denoiser) -> None:
    """Raises CarvError unless both speak of the same latents, noise levels and text."""
    names = f"{teacher.name or 'the teacher'} and {lora_score.name or 'the LoRA model'}"
    way_out = "take both from one series (Stable Diffusion 2.1 base and 2.1, say), or the same for both"
    for key, what in (("in_channels", "latents of {} channels"), ("cross_attention_dim", "text {} wide")):
        ours, theirs = (getattr(model.unet.config, key) for model in (teacher, lora_score))
        if ours != theirs:
            raise CarvError(f"{names} do not fit: they take {what.format(ours)} and {what.format(theirs)}; {way_out}.")
    first, second = teacher.schedule.alphas_cumprod, lora_score.schedule.alphas_cumprod.to(teacher.schedule.device)
    if first.shape != second.shape or not torch.allclose(first, second, atol=1e-4):
        raise CarvError(f"{names} do not fit: their noise schedules differ; {way_out}.")
