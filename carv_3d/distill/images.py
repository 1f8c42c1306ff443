"""Images of a one-step generator, from the noise that `carv_3d.evaluation.images` gives its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from carv_3d.distill.generator import OneStepGenerator
from carv_3d.evaluation.images import noise_batches


@torch.no_grad()
def one_step_images(
    generator: nn.Module, teacher: Any, prompts: Sequence[str], seed: int = 0, batch: int = 32
) -> Tensor:
    """One image of each of N prompts, (N, 3, H, W) in [0, 1], by one evaluation of the network each.

    `generator` is a OneStepGenerator, or its UNet alone, read with the teacher's schedule and prediction type. It is
    used as it is; give the averaged one. The images do not depend on `batch`.
    """
    if not isinstance(generator, OneStepGenerator):
        generator = OneStepGenerator(generator, teacher.schedule, teacher.prediction_type)
    made = [
        teacher.decode(generator(eps, teacher.text_embeddings(part).float()))
        for eps, part in noise_batches(teacher, prompts, seed, batch)
    ]
    return torch.cat(made)
