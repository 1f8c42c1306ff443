import pytest
import torch
from exact import guided

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.guidance.sampling import ddim, prompt_images, pure_noise, sample_images
from carv_3d.teachers.gaussian import GaussianTeacher


def teacher() -> GaussianTeacher:
    means = torch.tensor([-0.6, 0.7]).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    return GaussianTeacher(means, 0.1, NoiseSchedule.scaled_linear(), ["dark", "light"])


def test_ddim_is_the_recursion_written_out() -> None:
    gauss, K = teacher(), 5
    text = gauss.text_embeddings(["light", "dark", "dark"])

    def eps_hat(z, t):
        return gauss.eps_hat(z, t, text)

    z = torch.randn(3, 3, 2, 2, generator=torch.Generator().manual_seed(4))
    abar = gauss.schedule.alphas_cumprod
    for t in range(800, -1, -200):  # 1000 // 5 apart, ending at 0
        eps = eps_hat(z, torch.full((3,), t))
        before = abar[max(t - 200, 0)]
        z = before.sqrt() * (z - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt() + (1 - before).sqrt() * eps
    images = sample_images(gauss, eps_hat, 3, K, seed=4)
    torch.testing.assert_close(images, gauss.decode(z).permute(0, 2, 3, 1), rtol=1e-4, atol=1e-5)


def test_each_image_is_of_its_own_prompt_guided() -> None:
    gauss = teacher()
    images = prompt_images(gauss, ["light", "dark", "light", "dark"], 2.0, 20, seed=1)
    expected = torch.tensor([0.85, 0.2, 0.85, 0.2])  # (mean + 1) / 2
    torch.testing.assert_close(images.mean((1, 2, 3)), expected, atol=0.05, rtol=0)
    cond, uncond = (gauss.text_embeddings([p]) for p in ("light", ""))

    def eps_hat(z, t):
        return guided(gauss, z, t, cond, uncond, 2.0)

    torch.testing.assert_close(prompt_images(gauss, ["light"], 2.0, 20, 1), sample_images(gauss, eps_hat, 1, 20, 1))


@pytest.mark.parametrize("schedule", [NoiseSchedule.flow(), NoiseSchedule.flow(shift=3.0), NoiseSchedule.edm()])
def test_samples_have_the_data_s_mean_and_spread_in_every_family(schedule: NoiseSchedule) -> None:
    gauss = GaussianTeacher(torch.full((1, 3, 2, 2), 0.3), 0.2, schedule)
    text = gauss.text_embeddings([""] * 400)
    given: list[torch.Tensor] = []

    def eps_hat(z, t):
        given.append(z / schedule.norm(t).view(-1, 1, 1, 1))
        return gauss.eps_hat(z, t, text)

    images = sample_images(gauss, eps_hat, 400, 250) * 2 - 1
    assert float(images.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(images.std()) == pytest.approx(0.2, abs=0.02)
    # what the teacher is given has the variance of z_t at its own t
    assert float(given[0].std()) == pytest.approx(1, abs=0.05)


def test_ddim_knows_any_schedule() -> None:
    abar = torch.linspace(0.99, 0.01, 40).square()
    scheduler = ddim(abar, 100)  # no more steps than timesteps
    assert len(scheduler.timesteps) == 40
    assert scheduler.alphas_cumprod.tolist() == pytest.approx(abar.tolist(), rel=1e-4)


def test_noise_that_is_given_is_begun_from() -> None:
    gauss = teacher()
    z = pure_noise(gauss, 2, 5)
    own, given = (prompt_images(gauss, ["light", "dark"], 2.0, 4, seed=5, noise=x) for x in (None, z))
    assert torch.equal(own, given)
    assert not torch.allclose(own, prompt_images(gauss, ["light", "dark"], 2.0, 4, seed=5, noise=z.flip(0)))
