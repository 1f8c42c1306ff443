"""What a host gives variational score distillation at a call reaches both sides."""

from __future__ import annotations

from typing import Any

import torch
from exact import SCORE_MEANS, GaussianScore

from carv_3d.guidance.vsd import VSDGuidance, VSDOptions
from carv_3d.teachers.gaussian import GaussianTeacher

MEANS = torch.cat([SCORE_MEANS, SCORE_MEANS[:1].roll(1, -1)])  # of three, not all pushes are along one line
TEACHER = GaussianTeacher(MEANS, std=0.4, image_size=2)
OWN = GaussianTeacher(SCORE_MEANS).text_embeddings(["0"])
TEXT, NONE, OTHER = (TEACHER.text_embeddings([prompt]) for prompt in ("0", "", "1"))


def test_a_generator_and_perp_negs_negatives() -> None:
    score: Any = GaussianScore()
    guidance = VSDGuidance(TEACHER, score, VSDOptions(num_draws=2, guidance_scale=3.0, seed=0))
    before, given = guidance.sds.generator.get_state(), torch.Generator()
    z = torch.tensor([0.5, -1.0, 0.8, 0.1], dtype=torch.float64).view(1, 2, 2, 1).requires_grad_()
    plain, pushed = (
        guidance(
            z, TEXT, NONE, OWN, torch.zeros(1, 16), 0, rgb_as_latents=True, generator=given.manual_seed(5),
            negatives=negatives,
        )
        for negatives in (None, (OTHER[:, None], -torch.ones(1, 1, dtype=torch.float64)))
    )  # fmt: skip
    assert torch.equal(guidance.sds.generator.get_state(), before)  # nothing was drawn from the guidance's own
    assert torch.equal(plain.sds.estimate.eps, pushed.sds.estimate.eps)
    assert plain.loss_lora.detach() == pushed.loss_lora.detach()
    assert not torch.allclose(plain.sds.estimate.grad, pushed.sds.estimate.grad)
