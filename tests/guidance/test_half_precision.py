"""A teacher in half precision: the gradient stays within 1 % of that in float32; residual and mean are float32."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from carv_3d.core.estimator import Draws
from carv_3d.guidance.sds import GuidanceOptions, SDSGuidance
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher

DTYPES = [torch.float16, torch.bfloat16]


def in_dtype(teacher: Any, dtype: torch.dtype) -> StableDiffusionTeacher:
    """The same teacher with a UNet in `dtype`; the VAE as it was."""
    unet = copy.deepcopy(teacher.unet).to(dtype)
    return StableDiffusionTeacher(unet, teacher.vae, teacher.text_encoder, teacher.tokenizer, teacher.schedule)


def guided_loss(teacher: Any, scale: float, K: int = 8) -> tuple[Tensor, Any]:
    """The renders, and what guidance makes of them."""
    g = torch.Generator().manual_seed(0)
    rgb = torch.rand(2, 16, 16, 3, generator=g).requires_grad_()
    t = torch.randint(20, 981, (2, K), generator=g)
    draws = Draws(t=t, eps=torch.randn(2, K, 4, 8, 8, generator=g), weights=0.5 + torch.rand(2, K, generator=g))
    text = [teacher.text_embeddings([prompt] * 2) for prompt in ("a red mug", "")]
    guidance = SDSGuidance(teacher, GuidanceOptions(guidance_scale=scale, num_draws=K, seed=0))
    return rgb, guidance(rgb, *text, step=0, draws=draws)


def gradient(rgb: Tensor, out: Any) -> Tensor:
    return torch.autograd.grad(out.loss_sds, rgb)[0]


# bfloat16 has 8 bits: the difference that guidance multiplies is rounded, by 2.6 % of the gradient at a scale of 7.5
@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float16, 1.0), (torch.float16, 7.5), (torch.float16, 100.0), (torch.bfloat16, 1.0)]
)
def test_the_gradient_is_within_a_hundredth_of_float32(sd_teacher: Any, dtype: torch.dtype, scale: float) -> None:
    expected = gradient(*guided_loss(sd_teacher, scale))
    rgb, out = guided_loss(in_dtype(sd_teacher, dtype), scale)
    half = gradient(rgb, out)
    assert half.dtype == out.estimate.residual.dtype == out.estimate.grad.dtype == torch.float32
    assert float((half - expected).norm() / expected.norm()) < 0.01
    assert not torch.equal(half, expected)  # it did run in half precision


@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_of_the_host_changes_no_gradient(sd_folder: Path, sd_teacher: Any, dtype: torch.dtype) -> None:
    expected = gradient(*guided_loss(sd_teacher, 7.5))
    with torch.autocast("cpu", dtype=dtype):
        inside = guided_loss(StableDiffusionTeacher.load(str(sd_folder), device="cpu"), 7.5)
    torch.testing.assert_close(gradient(*inside), expected)  # backward outside, as PyTorch asks
