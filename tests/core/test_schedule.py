"""The schedule against diffusers' own, and the weights against threestudio's definitions."""

from __future__ import annotations

import pytest
import torch

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError


def test_scaled_linear_is_diffusers_to_the_last_bit() -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    ours = NoiseSchedule.scaled_linear()
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    g = torch.Generator().manual_seed(0)
    z, eps = torch.randn(5, 4, 3, 3, generator=g), torch.randn(5, 4, 3, 3, generator=g)
    t = torch.tensor([0, 20, 500, 980, 999])
    assert torch.equal(ours.add_noise(z, eps, t), theirs.add_noise(z, eps, t))


def test_known_values() -> None:
    schedule = NoiseSchedule(torch.tensor([0.84, 0.36, 0.0]))
    t = torch.tensor([[0, 1], [2, 1]])
    torch.testing.assert_close(schedule.alpha(t)[:, 1], torch.tensor([0.6, 0.6]))
    torch.testing.assert_close(schedule.sigma(t), torch.tensor([[0.4, 0.8], [1.0, 0.8]]))
    torch.testing.assert_close(schedule.w(t, "sds"), torch.tensor([[0.16, 0.64], [1.0, 0.64]]))
    torch.testing.assert_close(schedule.w(t, "fantasia3d")[:, 1], torch.tensor([0.384, 0.384]))
    assert torch.equal(schedule.w(t, "uniform"), torch.ones(2, 2))
    assert torch.equal(schedule.w(t, torch.tensor([3.0, 1.0, 2.0])), torch.tensor([[3.0, 1.0], [2.0, 1.0]]))


def test_add_noise_is_differentiable_and_keeps_the_type() -> None:
    schedule = NoiseSchedule(torch.tensor([0.84, 0.36]))
    z = torch.zeros(2, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    z_t = schedule.add_noise(z, torch.ones_like(z), torch.tensor([1, 0]))
    z_t.sum().backward()
    assert z_t.dtype == torch.float64
    assert z.grad is not None
    torch.testing.assert_close(z.grad.flatten(), torch.tensor([0.6, 0.84**0.5]).double())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: NoiseSchedule(torch.ones(2, 2)), r"shape \(2, 2\)"),
        (lambda: NoiseSchedule(torch.tensor([0.5, 1.5])), "leaves"),
        (lambda: NoiseSchedule(torch.tensor([0.5])).weights("dreamfusion"), "sds, uniform, fantasia3d"),
        (lambda: NoiseSchedule(torch.tensor([0.5])).weights(torch.ones(2)), "1 timesteps"),
    ],
)
def test_mistakes_are_named(make: object, said: str) -> None:
    with pytest.raises(CarvError, match=said):
        make()  # type: ignore[operator]


def test_v_and_z_t_turn_into_image_and_noise() -> None:
    schedule, g = NoiseSchedule.scaled_linear(), torch.Generator().manual_seed(3)
    z, eps = torch.randn(2, 3, 4, 4, generator=g), torch.randn(2, 3, 4, 4, generator=g)
    t = torch.tensor([10, 900])
    z_t, v = schedule.add_noise(z, eps, t), schedule.v(z, eps, t)
    alpha, sigma = (x.view(2, 1, 1, 1) for x in (schedule.alpha(t), schedule.sigma(t)))
    torch.testing.assert_close(alpha * z_t - sigma * v, z)
    torch.testing.assert_close(alpha * v + sigma * z_t, eps)
    torch.testing.assert_close(schedule.z_from_v(z_t, v, t), z)
    torch.testing.assert_close(schedule.eps_from_v(z_t, v, t), eps)
    torch.testing.assert_close(schedule.z_from_eps(z_t, eps, t), z, rtol=1e-4, atol=1e-5)
