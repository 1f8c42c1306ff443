"""A teacher that is given an image next to the text: one scale or two, by render and by draw, and other sizes."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from carv_3d.core.estimator import Draws
from carv_3d.errors import CarvError
from carv_3d.guidance.cfg import Conditioning, perpendicular, predict
from carv_3d.guidance.sds import GuidanceOptions, SDSGuidance
from carv_3d.teachers.gaussian import GaussianTeacher

MEANS = torch.randn(3, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class WithImage(GaussianTeacher):
    """The exact teacher, whose prediction an image (N, 3, 2, 2) moves; it counts the samples of each call."""

    def __init__(self) -> None:
        super().__init__(MEANS, std=0.4)
        self.samples: list[int] = []

    def eps_hat(self, z_t: Tensor, t: Tensor, text_emb: Tensor, image: Tensor) -> Tensor:  # type: ignore[override]
        self.samples.append(len(z_t))
        return super().eps_hat(z_t, t, text_emb) + torch.tanh(image + z_t) * text_emb.exp().mean()


def given(n: int, M: int = 0) -> tuple[Tensor, Tensor, Conditioning]:
    """z_t, t and the conditions of n samples, with M negatives each for Perp-Neg."""
    g = torch.Generator().manual_seed(1)

    def text(*shape: int) -> Tensor:
        return torch.randn(n, *shape, 1, 3, generator=g, dtype=torch.float64).log_softmax(-1)

    z_t, image = torch.randn(2, n, 3, 2, 2, generator=g, dtype=torch.float64)
    perp_neg = (text(M), -torch.rand(n, M, generator=g)) if M else (None, None)
    scales = torch.linspace(0.5, 2.5, n, dtype=torch.float64)
    cond = Conditioning(text(), text(), None, *perp_neg, image_cond=image, image_scale=scales)
    return z_t, torch.randint(20, 980, (n,), generator=g), cond


@pytest.mark.parametrize("s", [7.5, 1.0, 0.0])
def test_two_scales_are_equation_3_of_instructpix2pix_in_one_batch(s: float) -> None:
    teacher, (z_t, t, cond) = WithImage(), given(3)
    e = predict(teacher.eps_hat, z_t, t, cond, s, ("guided",))
    assert teacher.samples == [9]
    assert cond.image_cond is not None
    assert cond.image_scale is not None
    text, image = (teacher.eps_hat(z_t, t, x, cond.image_cond) for x in (cond.text, cond.uncond))
    none = teacher.eps_hat(z_t, t, cond.uncond, torch.zeros_like(z_t))
    expected = none + s * (text - image) + cond.image_scale.view(3, 1, 1, 1) * (image - none)
    torch.testing.assert_close(e.guided, expected)
    torch.testing.assert_close(e.uncond, image)


@pytest.mark.parametrize(("s", "samples"), [(7.5, 6), (1.0, 3)])
def test_without_a_scale_every_prediction_is_given_the_image(s: float, samples: int) -> None:
    teacher, (z_t, t, cond) = WithImage(), given(3)
    unscaled = cond._replace(image_scale=None)
    guided = predict(teacher.eps_hat, z_t, t, unscaled, s, ("guided",)).guided
    assert teacher.samples == [samples]
    same = predict(teacher.eps_hat, z_t, t, cond._replace(image_scale=torch.ones(3)), s, ("guided",)).guided
    torch.testing.assert_close(guided, same)
    assert not torch.allclose(guided, predict(teacher.eps_hat, z_t, t, cond, s, ("guided",)).guided)
    predict(teacher.eps_hat, z_t, t, cond, s, ("text",))
    assert teacher.samples[-1] == 3  # no image is left out where nothing is guided


def test_perp_neg_is_given_the_image_and_its_scale() -> None:
    teacher, (z_t, t, cond) = WithImage(), given(2, M=2)
    guided = predict(teacher.eps_hat, z_t, t, cond, 5.0, ("guided",)).guided
    assert teacher.samples == [10]
    image, scales, weights = cond.image_cond, cond.image_scale, cond.perp_neg_weights
    assert image is not None
    assert scales is not None
    assert weights is not None
    assert cond.perp_neg is not None
    for n in range(2):
        z, time, own = z_t[n : n + 1], t[n : n + 1], image[n : n + 1]
        text, null = (teacher.eps_hat(z, time, x[n : n + 1], own) for x in (cond.text, cond.uncond))
        none = teacher.eps_hat(z, time, cond.uncond[n : n + 1], 0 * own)
        push = text - null
        for m in range(2):
            e = teacher.eps_hat(z, time, cond.perp_neg[n : n + 1, m], own) - null
            push = push + weights[n, m] * perpendicular(e, text - null)
        expected = null + 5.0 * push + (scales[n] - 1) * (null - none)
        torch.testing.assert_close(guided[n : n + 1], expected)


def test_an_image_and_its_scale_are_of_each_render_or_of_all() -> None:
    _, _, cond = given(1)
    whole = cond.per_render(3)
    assert whole.image_cond is not None
    assert whole.image_scale is not None
    assert (whole.image_cond.shape, whole.image_scale.shape) == ((3, 3, 2, 2), (3,))
    with pytest.raises(CarvError, match=re.escape("image_cond has shape (2, 3, 2, 2); it needs 4 axes and a batch of")):
        given(2)[2]._replace(text=cond.text, uncond=cond.uncond, image_scale=None).per_render(3)
    with pytest.raises(CarvError, match=r"image_scale is 1\.5; give a tensor"):
        cond._replace(image_scale=1.5).per_render(1)
    with pytest.raises(CarvError, match="image_scale is the scale of image_cond, which is absent"):
        cond._replace(image_cond=None).per_render(1)


def test_each_draw_is_given_the_image_of_its_render() -> None:
    teacher, (_, _, cond) = WithImage(), given(2)
    cond = Conditioning(*(None if x is None else x.float() for x in cond))  # type: ignore[arg-type]
    g = torch.Generator().manual_seed(2)
    rgb = torch.rand(2, 2, 2, 3, generator=g).requires_grad_()
    draws = Draws(torch.randint(20, 980, (2, 3), generator=g), torch.randn(2, 3, 3, 2, 2, generator=g))
    guidance = SDSGuidance(teacher, GuidanceOptions(guidance_scale=4.0, num_draws=3, max_batch=2))
    out = guidance.guide(rgb, cond, 0, draws=draws)
    residual = out.estimate.residual
    for r in range(2):
        own = cond.samples(slice(r, r + 1))
        for k in range(3):
            t, eps = draws.t[r, k : k + 1], draws.eps[r, k : k + 1]
            z_t = teacher.schedule.add_noise(out.latents[r : r + 1].detach(), eps, t)
            e = predict(teacher.eps_hat, z_t, t, own, 4.0, ("guided",)).guided
            w = 1 - teacher.schedule.alphas_cumprod[t]
            torch.testing.assert_close(residual[r, k : k + 1], w * (e - eps), rtol=1e-4, atol=1e-5)


def test_a_given_size_is_encoded_in_place_of_the_teachers_own(sd_teacher: Any) -> None:
    rgb = torch.rand(1, 11, 21, 3, generator=torch.Generator().manual_seed(3)).requires_grad_()
    text = sd_teacher.text_embeddings(["a mug"])
    guidance = SDSGuidance(sd_teacher, GuidanceOptions(num_draws=2, vae_sample="mode"))
    out = guidance.guide(rgb, Conditioning(text, text), 0, size=(10, 20))
    assert out.latents.shape == (1, 4, 5, 10)  # a VAE of two levels
    images = torch.nn.functional.interpolate(rgb.permute(0, 3, 1, 2), (10, 20), mode="bilinear", align_corners=False)
    torch.testing.assert_close(out.latents, sd_teacher.encode(images, sample=False))
    out.loss_sds.backward()
    assert rgb.grad is not None
    assert float(rgb.grad.abs().sum()) > 0
    latents = torch.rand(1, 8, 8, 4, generator=torch.Generator().manual_seed(4)).requires_grad_()
    kept = guidance.guide(latents, Conditioning(text, text), 0, rgb_as_latents=True, size=(8, 6))
    assert kept.latents.shape == (1, 4, 8, 6)
