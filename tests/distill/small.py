"""Networks and a teacher that are small enough to be known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.distill.loop import Distillation
from carv_3d.distill.network import FakeScore, OneStepGenerator
from carv_3d.distill.options import DistillOptions
from carv_3d.distill.prompts import ListedPrompts
from carv_3d.teachers.gaussian import GaussianTeacher

SHAPE = (1, 2, 2)
MEANS = torch.tensor([[1.0, -0.5, 0.3, 0.8], [-0.7, 0.9, -0.2, 0.1]]).view(2, *SHAPE)
SCHEDULE = NoiseSchedule.scaled_linear()


class LinearUNet(nn.Module):
    """A z_t + b + C text, whatever t: a UNet by its call alone. It counts its calls and samples."""

    def __init__(self, size: int = 4, text: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.A = nn.Parameter(0.3 * torch.randn(size, size, generator=g).to(dtype))
        self.b = nn.Parameter(0.3 * torch.randn(size, generator=g).to(dtype))
        self.C = nn.Parameter(0.3 * torch.randn(text, size, generator=g).to(dtype))
        self.batch_sizes: list[int] = []

    def forward(self, z_t: Tensor, t: Tensor, encoder_hidden_states: Tensor, return_dict: bool = True) -> Any:
        self.batch_sizes.append(len(z_t))
        out = z_t.flatten(1) @ self.A + self.b + encoder_hidden_states[:, 0] @ self.C
        return (out.view_as(z_t),)


class CountingTeacher(GaussianTeacher):
    """A mixture of two, which counts the samples of its scores."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(MEANS.to(dtype), std=0.4)
        self.batch_sizes: list[int] = []

    def eps_hat(self, z_t: Tensor, t: Tensor, text_emb: Tensor) -> Tensor:
        self.batch_sizes.append(len(z_t))
        return super().eps_hat(z_t, t, text_emb)


def small(ranks: Any = None, v: bool = True, **options: Any) -> Distillation:
    """A distillation of the mixture into a linear generator."""
    kind = "v_prediction" if v else "epsilon"
    return Distillation(
        CountingTeacher(),
        DistillOptions(**{"lr": 1e-2, "fake_lr": 1e-2, "guidance_scale": 2.0, **options}),
        ListedPrompts(["0", "1"]),
        ranks,
        OneStepGenerator(LinearUNet(), SCHEDULE, kind),
        FakeScore(LinearUNet(seed=1), SCHEDULE, kind),
    )
