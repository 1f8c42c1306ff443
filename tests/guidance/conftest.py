"""What variational score distillation is tested on: a teacher, the score of another model, and two renders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from carv_3d.teachers.lora_score import LoraScore
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher

B = 2


@pytest.fixture
def teacher(sd_folder: Path) -> Any:
    return StableDiffusionTeacher.load(str(sd_folder), device="cpu")


@pytest.fixture
def lora_score(v_prediction_folder: Path) -> LoraScore:
    """Of another model than the teacher's, that predicts v: threestudio's own pair is 2.1-base and 2.1."""
    torch.manual_seed(0)
    return LoraScore(StableDiffusionTeacher.load(str(v_prediction_folder), device="cpu"))


@pytest.fixture
def batch(sd_teacher: Any) -> tuple[Tensor, ...]:
    """rgb, the teacher's cond and uncond, the LoRA score's text, the camera."""
    g = torch.Generator().manual_seed(0)
    rgb = torch.rand(B, 16, 16, 3, generator=g).requires_grad_()
    text, null = sd_teacher.text_embeddings(["a mug, side", "a mug, back"]), sd_teacher.text_embeddings(["", ""])
    return rgb, text, null, sd_teacher.text_embeddings(["a mug"]), torch.randn(B, 4, 4, generator=g)
