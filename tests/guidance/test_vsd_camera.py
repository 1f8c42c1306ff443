"""The camera that a LoRA score is given: a matrix, four numbers, or none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from carv_3d.core.costs import CostMeter
from carv_3d.core.estimator import Draws
from carv_3d.errors import CarvError
from carv_3d.guidance.vsd import VSDGuidance, VSDOptions
from carv_3d.teachers.lora_score import LoraScore
from carv_3d.teachers.timed import TimedTeacher

B = 2
G = torch.Generator().manual_seed(0)
DRAWS = Draws(torch.tensor([[100], [700]]), torch.randn(B, 1, 4, 8, 8, generator=G))


def test_a_camera_may_be_four_numbers(teacher: Any, batch: Any) -> None:
    torch.manual_seed(0)  # the layer that reads the camera begins at random
    lora_score = LoraScore(teacher, camera_width=4)
    guidance = VSDGuidance(teacher, lora_score, num_draws=1, camera_condition_type="spherical", seed=0)
    with pytest.raises(CarvError, match=r"camera has shape \(2, 16\) .* need \(2, 4\)"):
        guidance(*batch, step=0)
    camera = batch[4].flatten(1)[:, :4]
    loss = guidance(*batch[:4], camera, step=0, lora_draws=DRAWS).loss_lora
    other = guidance(*batch[:4], 2 * camera, step=0, lora_draws=DRAWS).loss_lora
    assert abs(float(loss.detach()) - float(other.detach())) > 1e-3
    with pytest.raises(CarvError, match="extrinsics has 16 numbers and the LoRA score takes 4: make it with camera_w"):
        VSDGuidance(teacher, lora_score)


def test_without_a_camera_there_is_the_lora_alone(teacher: Any, batch: Any) -> None:
    lora_score = LoraScore(teacher, camera_width=0)
    assert all(name.startswith("layers.") for name, _ in lora_score.lora.named_parameters())
    meter, camera = CostMeter(), batch[4].flatten(1)[:, :0]
    options = VSDOptions(num_draws=3, camera_condition_type="none", guidance_scale_lora=2.5, seed=0)
    out = VSDGuidance(TimedTeacher(teacher, meter), lora_score, options, meter)(*batch[:4], camera, step=0)
    assert meter.nfe == B * (3 * 3 + 1)  # both of the teacher, one of the LoRA, one to train it
    assert out.loss_lora.requires_grad
    z, t = DRAWS.eps[:, 0], DRAWS.t[:, 0]
    with torch.no_grad():  # an untrained LoRA adds nothing
        text = batch[3].expand(B, -1, -1)
        torch.testing.assert_close(lora_score.eps_hat(z, t, text, camera), teacher.eps_hat(z, t, text))
