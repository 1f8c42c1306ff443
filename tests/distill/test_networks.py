"""The generator, the fake score and its loss, by values computed by hand and against a slow reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import SCHEDULE, SHAPE, LinearUNet

from carv_3d.core.estimator import Draws
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.distill.fake import FakeScore, FakeTraining
from carv_3d.distill.generator import OneStepGenerator
from carv_3d.errors import CarvError


def rows(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, *SHAPE, generator=g), torch.randn(n, 1, 2, generator=g)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("t", [None, 400])
def test_the_generator_is_one_step_to_the_clean_latents(kind: str, t: int | None) -> None:
    unet = LinearUNet()
    generator = OneStepGenerator(unet, SCHEDULE, kind, t)
    eps, text = rows(3)
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
    z = OneStepGenerator(unet, SCHEDULE)(*rows(5))
    torch.testing.assert_close(z.flatten(1), m.expand(5, 4), rtol=1e-4, atol=1e-4)


def test_copies_of_a_teacher_are_trainable_and_of_their_own(sd_teacher: Any) -> None:
    generator = OneStepGenerator.of_teacher(sd_teacher)
    fake = FakeScore.of_teacher(sd_teacher)
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
    fake = FakeScore.of_teacher(teacher)
    assert fake.prediction_type == "v_prediction"
    z_t, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 900])
    text = teacher.text_embeddings(["a mug", ""])
    eps = teacher.eps_hat(z_t, t, text)
    torch.testing.assert_close(fake.eps_hat(z_t, t, text), eps)
    torch.testing.assert_close(fake.z_hat(z_t, t, text), teacher.schedule.z_from_eps(z_t, eps, t), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_fake_scores_gradient_is_that_of_the_mean_squared_error(kind: str) -> None:
    unet = LinearUNet()
    fake = FakeScore(unet, SCHEDULE, kind)
    z, text = rows(3)
    g = torch.Generator().manual_seed(1)
    K = 4
    draws = Draws(torch.randint(0, 1000, (3, K), generator=g), torch.randn(3, K, *SHAPE, generator=g))
    found = FakeTraining(fake, K, max_batch=5).backward(z, text, draws=draws, scale=8.0)
    assert unet.rows == [4, 4, 4]  # 12 rows in batches of at most 5, of equal size
    got = [p.grad.clone() for p in fake.parameters()]
    total = torch.zeros(())
    for r in range(3):
        for k in range(K):
            t, eps = draws.t[r, k].reshape(1), draws.eps[r, k][None]
            abar = SCHEDULE.alphas_cumprod[t].view(1, 1, 1, 1)
            z_t = abar.sqrt() * z[r] + (1 - abar).sqrt() * eps
            target = eps if kind == "epsilon" else abar.sqrt() * eps - (1 - abar).sqrt() * z[r]
            total = total + (unet(z_t, t, text[r : r + 1])[0] - target).square().mean() / (3 * K)
    expected = torch.autograd.grad(total, list(fake.parameters()))
    for mine, theirs in zip(got, expected):
        torch.testing.assert_close(mine, 8 * theirs, rtol=1e-4, atol=1e-5)
    assert found.loss == pytest.approx(float(total.detach()), rel=1e-5)
    assert found.finite == 1.0


def test_the_fake_scores_draws_lie_in_strata_and_pairs() -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watched(FakeScore):
        def squared_errors(self, z: Any, t: Any, eps: Any, text_emb: Any) -> Any:
            seen.append((t.view(-1, 4), eps.view(-1, 4, *SHAPE)))
            return super().squared_errors(z, t, eps, text_emb)

    training = FakeTraining(Watched(LinearUNet(), SCHEDULE), 4, "render", antithetic=True, max_batch=100)
    training.backward(*rows(50), generator=torch.Generator().manual_seed(0))
    t, eps = seen[0]
    assert bool((t[:, 0] == t[:, 1]).all())
    assert bool((t[:, 0] < 500).all())
    assert bool((t[:, 2] >= 500).all())
    torch.testing.assert_close(eps[:, 0], -eps[:, 1])
    assert FakeTraining(FakeScore(LinearUNet(), SCHEDULE), 3, antithetic=True).draws.design.antithetic is False


def test_a_row_that_is_not_finite_is_told() -> None:
    z, text = rows(2)
    z[1] = float("inf")
    fake = FakeScore(LinearUNet(), SCHEDULE)
    found = FakeTraining(fake, 1, "none", max_batch=1).backward(z, text, torch.Generator().manual_seed(0))
    assert found.finite == 0.5
    assert all(bool(torch.isfinite(p.grad).all()) for p in fake.parameters() if p.grad is not None)


def test_bad_arguments() -> None:
    with pytest.raises(CarvError, match="prediction_type is 'sample'"):
        OneStepGenerator(LinearUNet(), SCHEDULE, "sample")
    with pytest.raises(CarvError, match=r"t is 1000; the teacher's timesteps are 0 \.\. 999"):
        OneStepGenerator(LinearUNet(), SCHEDULE, t=1000)
    assert OneStepGenerator(LinearUNet(), NoiseSchedule.scaled_linear(10)).t == 9
