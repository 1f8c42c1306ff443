"""Every family in half precision: the gradient within 1 % of float32's, and no part of it in a host's autocast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from family_matrix import families
from small_families import build_family
from torch import Tensor

from carv_3d.core.estimator import Draws
from carv_3d.guidance.sds import GuidanceOptions, SDSGuidance
from carv_3d.teachers.load import load_teacher


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("half")
    return {name: build_family(name, place / name) for name in families("half precision")}


def guided(teacher: Any, scale: float) -> tuple[Tensor, Any]:
    """The renders, and what guidance makes of them."""
    g = torch.Generator().manual_seed(0)
    R, K = 2, 4
    rgb = torch.rand(R, teacher.image_size, teacher.image_size, 3, generator=g).requires_grad_()
    shape = (teacher.latent_channels, teacher.latent_size, teacher.latent_size)
    draws = Draws(torch.randint(20, 981, (R, K), generator=g), torch.randn(R, K, *shape, generator=g))
    text = [teacher.text_embeddings([prompt] * R) for prompt in ("a red mug", "")]
    options = GuidanceOptions(guidance_scale=scale, num_draws=K, seed=0, vae_sample="mode")
    return rgb, SDSGuidance(teacher, options)(rgb, *text, step=0, draws=draws)


def gradient(rgb: Tensor, out: Any) -> Tensor:
    return torch.autograd.grad(out.loss_sds, rgb)[0]


# float16 bears the guidance; bfloat16's 8 bits round the difference that guidance multiplies, by 1 to 3 % at 7.5
@pytest.mark.parametrize("name", families("half precision"))
def test_the_gradient_is_within_a_hundredth_of_float32(name: str, folders: dict[str, Path]) -> None:
    whole = load_teacher(str(folders[name]), device="cpu")
    for dtype, scale in ((torch.float16, 7.5), (torch.bfloat16, 1.0)):
        expected = gradient(*guided(whole, scale))
        teacher = load_teacher(str(folders[name]), device="cpu")
        teacher.network, teacher.dtype = teacher.network.to(dtype), dtype  # as a GPU has it; the VAE in float32
        rgb, out = guided(teacher, scale)
        half = gradient(rgb, out)
        assert half.dtype == out.estimate.residual.dtype == out.estimate.grad.dtype == torch.float32
        error = float((half - expected).norm() / expected.norm())
        assert 0 < error < 0.01, (dtype, scale)


@pytest.mark.parametrize("name", families("half precision"))
def test_autocast_of_the_host_changes_no_gradient(name: str, folders: dict[str, Path]) -> None:
    teacher = load_teacher(str(folders[name]), device="cpu")
    expected = gradient(*guided(teacher, 7.5))
    teacher.forget_texts()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = guided(teacher, 7.5)
    torch.testing.assert_close(gradient(*inside), expected)
