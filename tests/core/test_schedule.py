"""The schedule against diffusers' own, and the weights against threestudio's definitions."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.core.schedule_tables import named_betas
from carv_3d.errors import CarvError


def test_scaled_linear_is_diffusers_to_the_last_bit() -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    schedule = NoiseSchedule.scaled_linear()
    assert torch.equal(schedule.alphas_cumprod, scheduler.alphas_cumprod)
    g = torch.Generator().manual_seed(0)
    z, eps = torch.randn(5, 4, 3, 3, generator=g), torch.randn(5, 4, 3, 3, generator=g)
    t = torch.tensor([0, 20, 500, 980, 999])
    assert torch.equal(schedule.add_noise(z, eps, t), scheduler.add_noise(z, eps, t))


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


BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
COSINE = named_betas("squaredcos_cap_v2", 1000, 0.0, 0.0)
SCALED = NoiseSchedule.scaled_linear()
DDIM = {"_class_name": "DDIMScheduler"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
EDM = {"_class_name": "EDMEulerScheduler"}
ONE, FIRST = torch.ones(1, 1), torch.zeros(1, dtype=torch.long)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"beta_schedule": "linear", "beta_end": 0.03, "num_train_timesteps": 200},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "rescale_betas_zero_snr": True},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100},
        {"beta_schedule": "sigmoid"},
        {"trained_betas": [0.01, 0.02, 0.4]},
    ],
)
def test_a_config_gives_diffusers_schedule_to_the_last_bit(config: dict[str, Any]) -> None:
    from diffusers import DDPMScheduler, EulerDiscreteScheduler

    scheduler = DDPMScheduler(**config)
    for schedule in (NoiseSchedule.from_config(scheduler.config), NoiseSchedule.from_config(config)):
        assert torch.equal(schedule.alphas_cumprod, scheduler.alphas_cumprod)
    assert torch.equal(NoiseSchedule.from_diffusers(scheduler).alphas_cumprod, scheduler.alphas_cumprod)
    if config.get("beta_schedule") != "sigmoid":
        euler = EulerDiscreteScheduler(**config)
        assert torch.equal(NoiseSchedule.from_diffusers(euler).alphas_cumprod, euler.alphas_cumprod)


def test_tables_of_every_kind_are_taken() -> None:
    abar = [0.9, 0.5, 0.1]
    for table in (abar, tuple(abar), np.array(abar), torch.tensor(abar, dtype=torch.float64)):
        assert NoiseSchedule(table).alphas_cumprod.tolist() == abar
        assert NoiseSchedule(table).alphas_cumprod.dtype == torch.float64
    assert NoiseSchedule(np.array(abar, dtype=np.float32)).alphas_cumprod.dtype == torch.float32
    assert NoiseSchedule(torch.tensor(abar).half()).alphas_cumprod.dtype == torch.float32
    assert NoiseSchedule.from_betas([0.1, 0.5]).alphas_cumprod.tolist() == pytest.approx([0.9, 0.45])
    assert NoiseSchedule.from_betas(np.linspace(1e-6, 1e-5, 200)).num_train_timesteps == 200  # little noise is no error
    assert repr(NoiseSchedule(abar)) == "NoiseSchedule(3 timesteps, abar 0.9 to 0.1, cpu)"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: NoiseSchedule(torch.ones(2, 2)), r"shape \(2, 2\)"),
        (lambda: NoiseSchedule(torch.arange(3)), "floating-point"),
        (lambda: NoiseSchedule(torch.tensor([0.5, 1.5])), "leaves"),
        (lambda: NoiseSchedule([0.5, float("nan")]), "leaves"),
        (lambda: NoiseSchedule([]), r"shape \(0,\)"),
        (lambda: NoiseSchedule("sd"), "is a str; it must be a tensor"),
        (lambda: NoiseSchedule(None), "is a NoneType; it must be a tensor"),
        (lambda: NoiseSchedule(SCALED), "from_diffusers"),
        (lambda: NoiseSchedule(SimpleNamespace(alphas_cumprod=BETAS)), "is a SimpleNamespace.*from_diffusers"),
        (lambda: NoiseSchedule({"beta_start": 1}), "from_config"),
        (lambda: NoiseSchedule(BETAS), "0.00085 to 0.012.*from_betas"),
        (lambda: NoiseSchedule(1 - BETAS), "from_betas"),
        (lambda: NoiseSchedule(1 - COSINE), "from_betas"),
        (lambda: NoiseSchedule(SCALED.alphas_cumprod.flip(0)), "turned round"),
        (lambda: NoiseSchedule([0.5, 0.5]), "must fall"),
        (lambda: NoiseSchedule.from_betas(SCALED.alphas_cumprod), r"use NoiseSchedule\(alphas_cumprod\)"),
        (lambda: NoiseSchedule.from_betas([-0.1]), "betas leaves"),
        (lambda: NoiseSchedule.from_config(SCALED), "from_diffusers"),
        (lambda: NoiseSchedule.from_config({"beta_schedule": "cubic"}), "'cubic'; it must be one of linear"),
        (lambda: NoiseSchedule.from_config({"_class_name": "SCMScheduler"}), "'SCMScheduler', a scheduler whose"),
        (lambda: NoiseSchedule.from_config({"prediction_type": "dog"}), "is 'dog'; it must be one of epsilon"),
        (lambda: NoiseSchedule.from_config({**DDIM, "sigma_data": 0.5}), "0.5, as flow matching or EDM have it"),
        (lambda: NoiseSchedule.from_config({**DDIM, "timestep_type": "continuous"}), "timestep_type is 'continuous'"),
        (lambda: NoiseSchedule.from_config({"num_train_timesteps": 10**9}), "a whole number from 1 to 1,000,000"),
        (lambda: NoiseSchedule.from_config({"beta_end": "x"}), "beta_end is 'x'; it must be a number"),
        (lambda: NoiseSchedule.from_config({**FLOW, "prediction_type": "epsilon"}), "must be flow_prediction"),
        (lambda: NoiseSchedule.from_config({**FLOW, "invert_sigmas": True}), "invert_sigmas is True, which is not"),
        (lambda: NoiseSchedule.from_config({**FLOW, "shift": 0}), "shift is 0; it must be a number above 0"),
        (lambda: NoiseSchedule.from_config({**EDM, "sigma_min": 90}), "0 < sigma_min < sigma_max"),
        (lambda: NoiseSchedule.from_config({**EDM, "sigma_schedule": "cubic"}), "must be one of karras, exponential"),
        (lambda: SCALED.target("dog", ONE, ONE, FIRST), "'dog'; it must be one of epsilon"),
        (lambda: SCALED.target("edm", ONE, ONE, FIRST), "a schedule of family 'vp' lacks"),
        (lambda: NoiseSchedule.flow().eps_from("v_prediction", ONE, ONE, FIRST), "of family 'flow' lacks"),
        (lambda: NoiseSchedule.flow().weights("inverse_snr"), "is infinite .* take min_snr"),
        (lambda: NoiseSchedule.flow().weights("sigma_over_alpha"), "sigma_over_alpha is infinite .* take min_snr"),
        (lambda: NoiseSchedule.from_diffusers({"beta_start": 1}), "from_config"),
        (lambda: NoiseSchedule.from_diffusers(SimpleNamespace(scheduler=1)), "give the scheduler"),
        (lambda: NoiseSchedule(torch.tensor([0.5])).weights("dreamfusion"), "sds, uniform, fantasia3d"),
        (lambda: NoiseSchedule(torch.tensor([0.5])).weights(torch.ones(2)), "1 timesteps"),
    ],
)
def test_mistakes_are_named(make: Callable[[], object], said: str) -> None:
    with pytest.raises(CarvError, match=said):
        make()


def test_a_table_is_copied_whatever_its_strides() -> None:
    table = torch.linspace(0.9, 0.1, 9)
    schedule = NoiseSchedule(table)
    table.zero_()
    assert torch.equal(schedule.alphas_cumprod, torch.linspace(0.9, 0.1, 9))
    assert NoiseSchedule(np.linspace(0.1, 0.9, 9)[::-1]).alphas_cumprod[0] == 0.9


def test_v_and_z_t_turn_into_image_and_noise() -> None:
    schedule, g = NoiseSchedule.scaled_linear(), torch.Generator().manual_seed(3)
    z, eps = torch.randn(2, 3, 4, 4, generator=g), torch.randn(2, 3, 4, 4, generator=g)
    t = torch.tensor([10, 900])
    z_t, v = schedule.add_noise(z, eps, t), schedule.target("v_prediction", z, eps, t)
    alpha, sigma = (x.view(2, 1, 1, 1) for x in (schedule.alpha(t), schedule.sigma(t)))
    torch.testing.assert_close(alpha * z_t - sigma * v, z)
    torch.testing.assert_close(alpha * v + sigma * z_t, eps)
    torch.testing.assert_close(schedule.z_from("v_prediction", z_t, v, t), z)
    torch.testing.assert_close(schedule.eps_from("v_prediction", z_t, v, t), eps)
    torch.testing.assert_close(schedule.z_from("epsilon", z_t, eps, t), z, rtol=1e-4, atol=1e-5)
