"""The generator, the fake score and its loss, by values computed by hand and against a slow reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import SCHEDULE, SHAPE, LinearUNet

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.distill.network import FakeScore, OneStepGenerator
from carv_3d.errors import CarvError
from carv_3d.teachers.gaussian import GaussianTeacher


def samples(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, *SHAPE, generator=g), torch.randn(n, 1, 2, generator=g)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("t", [None, 400])
def test_the_generator_is_one_step_to_the_clean_latents(kind: str, t: int | None) -> None:
    unet = LinearUNet()
    generator = OneStepGenerator(unet, SCHEDULE, kind, t)
    eps, text = samples(3)
    raw = unet(eps, torch.zeros(3), text)[0]
    abar = SCHEDULE.alphas_cumprod[999 if t is None else t]
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    expected = (eps - sigma * raw) / alpha if kind == "epsilon" else alpha * eps - sigma * raw
    z = generator(eps, text)
    torch.testing.assert_close(z, expected)
    z.sum().backward()
    slope = -float(sigma / alpha) if kind == "epsilon" else -float(sigma)
    torch.testing.assert_close(unet.b.grad, torch.full((4,), 3 * slope))
    torch.testing.assert_close(unet.A.grad, slope * eps.flatten(1).sum(0)[:, None].expand(4, 4))


def test_a_perfect_model_of_one_gaussian_gives_back_its_mean() -> None:
    # eps_hat of N(m, 0): (z_t - alpha m) / sigma, so any noise becomes m
    m = torch.tensor([1.0, -0.5, 0.3, 0.8])
    abar = SCHEDULE.alphas_cumprod[999]
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    unet = LinearUNet()
    with torch.no_grad():
        unet.A.copy_(torch.eye(4) / sigma)
        unet.b.copy_(-alpha * m / sigma)
        unet.C.zero_()
    z = OneStepGenerator(unet, SCHEDULE)(*samples(5))
    torch.testing.assert_close(z.flatten(1), m.expand(5, 4), rtol=1e-4, atol=1e-4)


def test_copies_of_a_teacher_are_trainable_and_of_their_own(sd_teacher: Any) -> None:
    generator = OneStepGenerator.from_teacher(sd_teacher)
    fake = FakeScore.from_teacher(sd_teacher)
    assert (generator.prediction_type, generator.t) == ("epsilon", 999)
    parameters = list(generator.parameters())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in parameters)
    z_t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t, text = torch.tensor([10, 900]), sd_teacher.text_embeddings(["a mug", ""])
    torch.testing.assert_close(fake.eps_hat(z_t, t, text), sd_teacher.eps_hat(z_t, t, text))
    generator(z_t, text).sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in parameters)
    with torch.no_grad():
        parameters[0].add_(1.0)
    assert not torch.equal(parameters[0], next(sd_teacher.unet.parameters()))
    assert not next(sd_teacher.unet.parameters()).requires_grad


def test_v_and_epsilon_say_the_same(v_prediction_folder: Any) -> None:
    from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher

    teacher = StableDiffusionTeacher.load(str(v_prediction_folder), device="cpu")
    fake = FakeScore.from_teacher(teacher)
    assert fake.prediction_type == "v_prediction"
    z_t, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 900])
    text = teacher.text_embeddings(["a mug", ""])
    eps = teacher.eps_hat(z_t, t, text)
    torch.testing.assert_close(fake.eps_hat(z_t, t, text), eps)
    z = teacher.schedule.z_from("epsilon", z_t, eps, t)
    torch.testing.assert_close(fake.z_hat(z_t, t, text), z, rtol=1e-3, atol=1e-4)


def test_bad_arguments() -> None:
    with pytest.raises(CarvError, match="prediction_type is 'dog'"):
        OneStepGenerator(LinearUNet(), SCHEDULE, "dog")
    with pytest.raises(CarvError, match=r"t is 1000; the teacher's timesteps are 0 \.\. 999"):
        OneStepGenerator(LinearUNet(), SCHEDULE, t=1000)
    assert OneStepGenerator(LinearUNet(), NoiseSchedule.scaled_linear(10)).t == 9


def test_a_generator_names_what_does_not_fit() -> None:
    with pytest.raises(CarvError, match="the teacher is a GaussianTeacher, which has no UNet to copy"):
        OneStepGenerator.from_teacher(GaussianTeacher(torch.zeros(1, 4, 4, 4)))  # type: ignore[arg-type]
    wrong: Any = "a"
    with pytest.raises(CarvError, match=r"t is 'a'; the teacher's timesteps are 0 \.\. 999"):
        OneStepGenerator(LinearUNet(), SCHEDULE, "epsilon", wrong)


def test_a_stable_diffusion_generator_takes_samples_that_go_together_in_any_precision(sd_teacher: Any) -> None:
    generator = OneStepGenerator.from_teacher(sd_teacher)
    eps, text = torch.randn(2, 4, 8, 8), sd_teacher.text_embeddings(["a", "b"])
    for others, said in (
        ((eps, text[:1]), r"z_t \(2, 4, 8, 8\), t \(2,\) and text_emb \(1, 20, 16\) do not fit"),
        ((eps, text[..., :3]), "the text is 3 wide and the UNet needs 16"),
        ((eps[:0], text[:0]), r"z_t \(0, 4, 8, 8\), .* do not fit"),
    ):
        with pytest.raises(CarvError, match=said):
            generator(*others)
    with torch.no_grad():
        expected = generator(eps, text)
        z = generator.bfloat16()(eps, text)
    assert z.dtype == torch.float32
    assert float((z - expected).norm() / expected.norm()) < 0.1
