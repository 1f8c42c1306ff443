"""One posterior sample per draw: the objective of one per render, one encoding, less variance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact import sds_gradient
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.guidance.sds import GuidanceOptions, SDSGuidance
from carv_3d.guidance.vsd_options import VSDOptions
from carv_3d.teachers.gaussian import GaussianTeacher

MEANS = torch.tensor([0.5, -0.4, 0.2, 0.9]).double().view(1, 1, 2, 2)
IMAGE = torch.tensor([0.9, 0.2, 0.4, 0.6]).double().view(1, 2, 2, 1).expand(1, 2, 2, 3)


class Blurred(GaussianTeacher):
    """The exact teacher behind an encoder whose posterior is wide, and the wider the brighter."""

    encodings = 0

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.encodings += 1
        z = GaussianTeacher.encode(self, images)
        return z, 0.8 + 0.3 * z

    def encode(self, images: Tensor, generator: torch.Generator | None = None, sample: bool = True) -> Tensor:
        mean, std = self.posterior(images)
        return mean + std * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)


def gradients(vae_sample: str, n: int, K: int = 4) -> tuple[Tensor, int]:
    """(n, 4) gradients on the image's one channel that counts, and how often it was encoded for each."""
    teacher = Blurred(MEANS, std=0.4)
    options = GuidanceOptions(
        num_draws=K, vae_sample=vae_sample, seed=0, guidance_scale=1.0, proposal="weight", max_batch=10**6
    )
    guidance, text = SDSGuidance(teacher, options), teacher.text_embeddings([""])
    out = []
    for _ in range(n):
        rgb = IMAGE.expand(20, 2, 2, 3).clone().requires_grad_()
        guided = guidance(rgb, text, text, step=0)
        assert guided.scalars["K"] == K
        out.append(torch.autograd.grad(guided.loss_sds * 20, rgb)[0][..., 0].flatten(1))
    return torch.cat(out), teacher.encodings // n


def test_the_same_expectation_by_one_encoding_at_less_variance() -> None:
    by_name = {name: gradients(name, 100) for name in ("sample", "draw")}
    per_render, per_draw = by_name["sample"][0], by_name["draw"][0]
    assert by_name["draw"][1] == 1
    error = (per_render.var(0) / len(per_render) + per_draw.var(0) / len(per_draw)).sqrt()
    assert float(((per_render.mean(0) - per_draw.mean(0)) / error).abs().max()) < 4
    assert float(error.norm() / per_render.mean(0).norm()) < 0.1
    assert float(per_draw.var(0).sum()) < 0.7 * float(per_render.var(0).sum())
    # eps_hat is linear in z here, so the objective is known: that of the mean, and through std that of xi f(z)
    teacher = Blurred(MEANS, std=0.4)
    mean = GaussianTeacher.encode(teacher, IMAGE.permute(0, 3, 1, 2))
    text = torch.zeros(1, 1, 1).double()
    low, high = GuidanceOptions().timestep_range(1000, 0)
    plain = sds_gradient(teacher, mean, text, low=low, high=high)
    slope = sds_gradient(teacher, mean + 1, text, low=low, high=high) - plain
    z = plain + 0.3 * (0.8 + 0.3 * mean) * slope  # E[(1 + 0.3 xi) f(mean + std xi)]
    expected = torch.autograd.grad(
        GaussianTeacher.encode(teacher, (x := IMAGE.clone().requires_grad_()).permute(0, 3, 1, 2)), x, z
    )[0][..., 0].flatten()
    sure = per_draw.std(0) / len(per_draw) ** 0.5
    assert float(((per_draw.mean(0) - expected) / sure).abs().max()) < 4


def test_the_posterior_is_what_encode_samples(sd_teacher: Any) -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = sd_teacher.posterior(images)
    z = sd_teacher.encode(images, torch.Generator().manual_seed(3))
    xi = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(mean + std * xi, z)
    torch.testing.assert_close(mean, sd_teacher.encode(images, sample=False))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"num_draws": "auto"}, "vae_sample is draw, which does not go with num_draws: auto"),
        ({"proposal": "adaptive"}, "does not go with proposal: adaptive"),
        ({"use_img_loss": True}, "does not go with objective: hifa"),
        ({"control_variate": True}, "does not go with control_variate: true"),
    ],
)
def test_what_it_does_not_go_with_is_named(other: dict[str, Any], said: str) -> None:
    with pytest.raises(CarvError, match=said):
        GuidanceOptions(vae_sample="draw", **other)


def test_the_lora_of_vsd_needs_one_sample_per_render() -> None:
    with pytest.raises(CarvError, match="vae_sample is draw"):
        VSDOptions(vae_sample="draw")


def test_each_draw_has_the_text_of_its_render() -> None:
    teacher = Blurred(torch.cat([MEANS, -MEANS]), std=0.4)
    options = GuidanceOptions(num_draws=3, vae_sample="draw", seed=0, guidance_scale=1.0)
    cond, texts = teacher.text_embeddings(["0", "1"]), []

    def spy(z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        texts.append(text)
        return torch.zeros_like(z_t)

    teacher.eps_hat = spy  # type: ignore[method-assign]
    SDSGuidance(teacher, options)(IMAGE.expand(2, 2, 2, 3).clone().requires_grad_(), cond, cond, step=0)
    assert torch.equal(torch.cat(texts), cond[[0, 0, 0, 1, 1, 1]])
