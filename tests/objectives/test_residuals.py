"""Each objective's residual by values computed by hand, and DMD's by its reference code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.objectives import residuals
from carv_3d.objectives.residuals import EpsHat
from carv_3d.objectives.table import OBJECTIVES
from carv_3d.teachers.gaussian import GaussianTeacher

SCHEDULE = NoiseSchedule.scaled_linear()
SHAPE = (1, 2, 2)
T = torch.tensor([30, 500, 970])
E = EpsHat(*(torch.full((3, *SHAPE), value) for value in (5.0, 2.0, 11.0, 7.0, 3.0)))
EPS = torch.full((3, *SHAPE), 0.5)
W = torch.tensor([2.0, 1.0, 4.0]).view(3, 1, 1, 1)


def value(name: str, w: Tensor = W, t: Tensor = T) -> list[float]:
    """f of each sample, which is the same at all its places."""
    f = OBJECTIVES[name].function(E, EPS, torch.ones(3, *SHAPE), t, SCHEDULE, w)
    assert f.shape == (3, *SHAPE)
    assert bool((f.flatten(1) == f.flatten(1)[:, :1]).all())
    return [float(x) for x in f[:, 0, 0, 0]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sds", [21.0, 10.5, 42.0]),  # w (11 - 0.5)
        ("hifa", [21.0, 10.5, 42.0]),
        ("sjc", [10.5, 10.5, 10.5]),
        ("sjc_plain", [11.0, 11.0, 11.0]),
        ("vsd", [16.0, 8.0, 32.0]),  # w (11 - 3)
        ("kl", [16.0, 8.0, 32.0]),
        ("csd", [6.0, 3.0, 12.0]),  # w (5 - 2)
        ("nfsd", [22.0, 4.0, 16.0]),  # w (2 + 3 s) at t = 30, w (2 - 7 + 3 s) from T / 5 on; s = 3
    ],
)
def test_known_values(name: str, expected: list[float]) -> None:
    assert value(name) == expected


def test_noise_free_keeps_the_unconditional_score_below_a_fifth_of_the_timesteps() -> None:
    assert value("nfsd", torch.ones(3, 1, 1, 1), torch.tensor([0, 199, 200])) == [11.0, 11.0, 4.0]
    short = NoiseSchedule(SCHEDULE.alphas_cumprod[:50])
    f = residuals.nfsd(E, EPS, EPS, torch.tensor([9, 10, 49]), short, torch.ones(3, 1, 1, 1))
    assert f[:, 0, 0, 0].tolist() == [11.0, 4.0, 4.0]


@pytest.mark.parametrize("trained", [False, True])
def test_the_image_residual_compares_clean_images(trained: bool) -> None:
    g = torch.Generator().manual_seed(0)
    z_t, guided, other = (torch.randn(3, 4, 2, 2, generator=g) for _ in range(3))
    images = torch.rand(3, 3, 4, 4, generator=g)

    def decode(z: Tensor) -> Tensor:
        return z[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3) * 0.5

    e = EpsHat(guided=guided, trained=other) if trained else EpsHat(guided=guided)
    residual = residuals.hifa(e, EPS, z_t, T, SCHEDULE, W, images, decode)
    for n in range(3):
        abar = SCHEDULE.alphas_cumprod[T[n]]
        clean, own = (decode((z_t[n : n + 1] - (1 - abar).sqrt() * x[n]) / abar.sqrt()) for x in (guided, other))
        x = own if trained else images[n]
        torch.testing.assert_close(residual[n], float(W[n]) * ((x - clean) * (abar / (1 - abar)).sqrt())[0])


@pytest.mark.parametrize("rescale", [0.0, 0.3, 1.0])
def test_reconstruction_is_towards_the_rescaled_prediction(rescale: float) -> None:
    g = torch.Generator().manual_seed(0)
    z, eps, text, guided = (torch.randn(3, *SHAPE, generator=g, dtype=torch.float64) for _ in range(4))
    z_t, e = SCHEDULE.add_noise(z, eps, T), EpsHat(text=text, guided=guided)
    alpha, sigma = (x.double().view(3, 1, 1, 1) for x in (SCHEDULE.alpha(T), SCHEDULE.sigma(T)))
    z_text, z_guided = ((z_t - sigma * x) / alpha for x in (text, guided))
    adjusted = torch.stack([a * b.std() / a.std() for a, b in zip(z_guided, z_text)])
    expected = z - rescale * adjusted - (1 - rescale) * z_guided
    f = residuals.reconstruction(e, eps, z_t, T, SCHEDULE, W, rescale)
    torch.testing.assert_close(f, expected, rtol=1e-5, atol=1e-6)


def test_kl_is_towards_the_teacher_and_of_known_size() -> None:
    # two Gaussians of one width: f = alpha_t^2 (m - mu) / v whatever the draw
    g = torch.Generator().manual_seed(0)
    mu, m = (torch.randn(1, *SHAPE, generator=g, dtype=torch.float64) for _ in range(2))
    real, fake = GaussianTeacher(mu, std=0.4), GaussianTeacher(m, std=0.4)
    z, eps = (torch.randn(3, *SHAPE, generator=g, dtype=torch.float64) for _ in range(2))
    z_t, w = SCHEDULE.add_noise(z, eps, T), torch.zeros(3, 1, 1)
    e = EpsHat(guided=real.eps_hat(z_t, T, w), trained=fake.eps_hat(z_t, T, w))
    alpha2 = SCHEDULE.alphas_cumprod[T].double().view(3, 1, 1, 1)
    kl = OBJECTIVES["kl"]
    f = kl.function(e, eps, z_t, T, SCHEDULE, kl.weights(SCHEDULE)[T].view(3, 1, 1, 1))
    torch.testing.assert_close(f, alpha2 / (alpha2 * 0.16 + 1 - alpha2) * (m - mu), rtol=1e-5, atol=1e-7)


def test_dmd_is_that_of_its_reference_code() -> None:
    g = torch.Generator().manual_seed(0)
    z, eps, eps_real, eps_fake = (torch.randn(3, *SHAPE, generator=g, dtype=torch.float64) for _ in range(4))
    z_t, e = SCHEDULE.add_noise(z, eps, T), EpsHat(guided=eps_real, trained=eps_fake)
    alpha, sigma = (x.double().view(3, 1, 1, 1) for x in (SCHEDULE.alpha(T), SCHEDULE.sigma(T)))
    p_real, p_fake = (z - (z_t - sigma * x) / alpha for x in (eps_real, eps_fake))
    expected = (p_real - p_fake) / p_real.abs().mean(dim=[1, 2, 3], keepdim=True)
    torch.testing.assert_close(residuals.dmd(e, eps, z_t, T, SCHEDULE, W, z=z), expected)
    torch.testing.assert_close(residuals.dmd(e, eps, z_t, T, SCHEDULE, W), expected)  # z from z_t and eps
    # and DMD's equation: w alpha_t (s_fake - s_real) with its w, but for the alpha_t that the code leaves out
    s_real, s_fake = -eps_real / sigma, -eps_fake / sigma
    w = sigma**2 / (alpha**2 * p_real.abs().mean(dim=[1, 2, 3], keepdim=True))
    torch.testing.assert_close(w * alpha * (s_fake - s_real), expected)
