"""Variance preserving, flow matching, EDM: conversions, diffusers' own marginals, and the exact Gaussian teacher."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from exact import guided, sds_gradient
from torch import Tensor

from carv_3d.core.estimator import CarvEstimator, EstimatorOptions
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.core.schedule_config import EDM_CLASSES, FLOW_CLASSES, VP_CLASSES, dynamic_shift
from carv_3d.errors import CarvError
from carv_3d.teachers.gaussian import GaussianTeacher

SCHEDULES = {
    "vp": NoiseSchedule.scaled_linear(200),
    "zero SNR": NoiseSchedule.from_config({"rescale_betas_zero_snr": True, "num_train_timesteps": 200}),
    "flow": NoiseSchedule.flow(200),
    "shifted flow": NoiseSchedule.flow(200, shift=3.0),
    "edm": NoiseSchedule.edm(200),
    "exponential edm": NoiseSchedule.edm(200, sigma_data=1.0, spacing="exponential"),
}
ANY = ["epsilon", "sample", "flow_prediction"]
KINDS = {"vp": [*ANY, "v_prediction"], "flow": ANY, "edm": [*ANY, "edm", "edm_v"]}


def draws(T: int, seed: int = 0, width: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    z, eps = (torch.randn(T, width, generator=g, dtype=torch.float64) for _ in range(2))
    return z, eps, torch.arange(T)


@pytest.mark.parametrize("name", SCHEDULES)
def test_conversions_are_inverse_to_each_other_at_every_t(name: str) -> None:
    schedule = SCHEDULES[name]
    z, eps, t = draws(schedule.num_train_timesteps)
    z_t = schedule.add_noise(z, eps, t)
    alpha, sigma = schedule.alpha(t).double(), schedule.sigma(t).double()
    for kind in KINDS[schedule.family]:
        prediction = schedule.target(kind, z, eps, t)
        some = (alpha > 0) | (kind != "epsilon")  # of eps alone there is no way back to z
        torch.testing.assert_close(schedule.eps_from(kind, z_t, prediction, t), eps, rtol=1e-5, atol=1e-5)
        back = schedule.z_from(kind, z_t, prediction, t)
        torch.testing.assert_close(back[some], z[some], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(schedule.snr(t).double(), alpha**2 / sigma**2, rtol=1e-4, atol=1e-9)
    abar = schedule.alphas_cumprod.double()
    torch.testing.assert_close(abar, alpha**2 / (alpha**2 + sigma**2), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(schedule.norm(t).double() ** 2, alpha**2 + sigma**2, rtol=1e-4, atol=1e-6)


def test_known_predictions() -> None:
    z, eps, first = torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor([0])
    flow = NoiseSchedule.flow(4)  # s = 1/4
    assert float(flow.add_noise(z, eps, first)) == 1.25
    assert float(flow.target("flow_prediction", z, eps, first)) == 1.0
    assert flow.network_input(z, first)[1].tolist() == [1]
    edm = NoiseSchedule.edm(2, sigma_min=0.5, sigma_max=2.0)  # sigma = sigma_data: c_skip = 1/2, c_out = 1/4 sqrt(2)
    z_t, F = edm.add_noise(z, eps, first), edm.target("edm", z, eps, first)
    assert float(z_t) == 2.0
    torch.testing.assert_close(0.5 * z_t + 0.5**1.5 * F, z)
    torch.testing.assert_close(edm.target("edm_v", z, eps, first), -F)


def test_weights_of_the_signal_to_noise_ratio() -> None:
    schedule = NoiseSchedule([0.9, 0.5, 0.1])  # SNR 9, 1, 1/9
    torch.testing.assert_close(schedule.weights("inverse_snr"), torch.tensor([1 / 9, 1, 9.0]).double())
    torch.testing.assert_close(schedule.weights("min_snr"), torch.tensor([5 / 9, 1, 1.0]).double())
    torch.testing.assert_close(schedule.weights("sigma_over_alpha"), torch.tensor([1 / 3, 1, 3.0]).double())
    flow = NoiseSchedule.flow(4)
    torch.testing.assert_close(flow.snr(torch.arange(4)), torch.tensor([9, 1, 1 / 9, 0]))
    assert float(flow.weights("min_snr")[-1]) == 1.0  # where the SNR is 0
    assert bool(torch.isfinite(flow.weights("sds")).all())


def test_weights_of_threestudios_unified_guidance() -> None:
    schedule = NoiseSchedule([0.81, 0.25, 0.0625])  # alpha 0.9, 0.5, 0.25
    torch.testing.assert_close(schedule.weights("one_minus_alpha"), torch.tensor([0.1, 0.5, 0.75]).double())
    expected = torch.tensor([0.9**0.5 * 0.1, 0.5**1.5, 0.5 * 0.75]).double()
    torch.testing.assert_close(schedule.weights("fantasia3d_alpha"), expected)


def scheduler(name: str, **config: Any) -> Any:
    import diffusers

    if name == "DPMSolverSDEScheduler":  # its module asks for torchsde, which only its steps need
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
            from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler

        return DPMSolverSDEScheduler(**config)
    return getattr(diffusers, name)(**config)


SOLVERS = {
    "DEISMultistepScheduler", "DPMSolverSinglestepScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler",
    "SASolverScheduler",
}  # fmt: skip
SIGMAS = {
    "LMSDiscreteScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler",
}  # fmt: skip


@pytest.mark.parametrize("name", VP_CLASSES)
def test_marginals_are_diffusers_own_with_betas(name: str) -> None:
    T = 50
    its = scheduler(name, num_train_timesteps=T, beta_schedule="scaled_linear", beta_start=0.02, beta_end=0.3)
    z, eps, t = (x.float() if x.is_floating_point() else x for x in draws(T))
    schedule = NoiseSchedule.from_diffusers(its)
    same = NoiseSchedule.from_config({**its.config, "_class_name": name})
    assert schedule.family == same.family == "vp"
    assert torch.equal(schedule.alphas_cumprod, same.alphas_cumprod)
    if "Inverse" in name:  # it adds no noise, or in an order of its own
        assert torch.equal(schedule.alphas_cumprod, its.alphas_cumprod)
        return
    if name in SOLVERS:  # they add noise at the timesteps that they will visit
        its.set_timesteps(T)
        t = its.timesteps.unique()
        z, eps = z[t], eps[t]
    noisy = its.add_noise(z, eps, t)
    if name in SIGMAS:  # z + sigma / alpha eps
        noisy = noisy * schedule.alpha(t)[:, None]
    torch.testing.assert_close(schedule.add_noise(z, eps, t), noisy, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FLOW_CLASSES)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_marginals_are_diffusers_own_with_flows(name: str, shift: float) -> None:
    T = 50
    its = scheduler(name, num_train_timesteps=T, shift=shift)
    z, eps, t = (x.float() if x.is_floating_point() else x for x in draws(T))
    schedule = NoiseSchedule.from_diffusers(its)
    z_t, times = schedule.network_input(schedule.add_noise(z, eps, t), t)
    torch.testing.assert_close(times, its.timesteps.flip(0)[-T:], rtol=1e-6, atol=1e-6)
    for i in range(T):
        its._step_index = None
        expected = its.scale_noise(z[i : i + 1], times[i : i + 1], eps[i : i + 1])
        torch.testing.assert_close(z_t[i : i + 1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_a_solver_with_flow_sigmas_is_flow_matching(name: str) -> None:
    config = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    its = scheduler(name, **config)
    schedule = NoiseSchedule.from_diffusers(its)
    assert (schedule.family, schedule.prediction_type) == ("flow", "flow_prediction")
    its.set_timesteps(20)
    z, eps, _ = draws(1)
    for step, sigma in enumerate(its.sigmas[1:-1].tolist(), start=1):
        nearest = torch.argmin((schedule.sigma(torch.arange(1000)) - sigma).abs())
        its._step_index = step
        noisy = its.add_noise(z, eps, its.timesteps[step : step + 1])
        torch.testing.assert_close(noisy, ((1 - sigma) * z + sigma * eps).to(noisy), rtol=1e-4, atol=1e-4)
        assert abs(float(schedule.times[nearest]) - float(its.timesteps[step])) < 4  # a grid of 1000, shifted


@pytest.mark.parametrize("name", EDM_CLASSES)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_edm_is_diffusers_own(name: str, kind: str) -> None:
    T = 40
    its = scheduler(name, num_train_timesteps=T, sigma_data=0.7, prediction_type=kind)
    its.set_timesteps(T)
    schedule = NoiseSchedule.from_diffusers(its)
    z, eps, t = (x.float() if x.is_floating_point() else x for x in draws(T))
    z_t = schedule.add_noise(z, eps, t)
    sigma = its.sigmas[:T].flip(0)
    torch.testing.assert_close(schedule.sigma(t), sigma, rtol=1e-5, atol=1e-6)
    given, times = schedule.network_input(z_t, t)
    torch.testing.assert_close(given, its.precondition_inputs(z_t, sigma[:, None]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(times, its.precondition_noise(sigma), rtol=1e-5, atol=1e-5)
    F = torch.randn(T, 3, generator=torch.Generator().manual_seed(5))
    denoised = its.precondition_outputs(z_t, F, sigma[:, None])
    torch.testing.assert_close(schedule.z_from(schedule.prediction_type, z_t, F, t), denoised, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["exponential", "linear"])
def test_a_dynamic_shift_is_diffusers_own(how: str) -> None:
    its = scheduler("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True, time_shift_type=how)
    assert NoiseSchedule.from_diffusers(its).sigma(torch.tensor([499])).item() == 0.5  # as trained, without a size
    shift = dynamic_shift(its.config, image_seq_len=1024)
    mu = 0.5 + (1.15 - 0.5) * (1024 - 256) / (4096 - 256)
    s = torch.linspace(1, 1000, 1000) / 1000
    torch.testing.assert_close(NoiseSchedule.flow(shift=shift).sigma(torch.arange(1000)), its.time_shift(mu, 1.0, s))


@pytest.mark.parametrize(
    ("make", "given", "says"),
    [
        (NoiseSchedule.flow, {"T": 2.5}, "T is 2.5; it must be a whole number"),
        (NoiseSchedule.edm, {"T": "a"}, "T is 'a'; it must be a whole number"),
        (NoiseSchedule.flow, {"T": 10**12}, "at most 1,000,000"),
        (NoiseSchedule.flow, {"shift": None}, "shift is None; it must be a number"),
        (NoiseSchedule.flow, {"shift": 1e300}, "shift = 1e.300"),
        (NoiseSchedule.flow, {"scale": [1]}, "scale is a list; it must be a number"),
        (NoiseSchedule.flow, {"scale": float("nan")}, "scale is nan; it must be above 0"),
        (NoiseSchedule.edm, {"sigma_data": 0}, "sigma_data is 0; it must be above 0"),
        (NoiseSchedule.edm, {"sigma_max": 1e300}, "sigma_max = 1e.300"),
        (NoiseSchedule.edm, {"rho": 1e-9}, "rho = 1e-09"),
        (NoiseSchedule, {"alphas_cumprod": torch.empty(5, device="meta")}, "alphas_cumprod is without data"),
        (NoiseSchedule, {"alphas_cumprod": torch.linspace(0.9, 0.1, 5).to_sparse()}, "not a dense table"),
        (NoiseSchedule, {"alphas_cumprod": [0.9, float("nan")]}, "holds NaN"),
        (NoiseSchedule.flow(4).to, {"device": "cdua"}, "device is 'cdua'; it must be a device such as cpu"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(make: Callable[..., Any], given: dict[str, Any], says: str) -> None:
    with pytest.raises(CarvError, match=says):
        make(**given)


def test_a_dynamic_shift_that_is_not_understood_is_refused() -> None:
    for config in ({"time_shift_type": "cubic"}, {"base_image_seq_len": 4096}, {"base_shift": "x"}):
        with pytest.raises(CarvError, match=next(iter(config))):
            dynamic_shift(config, 1024)


MEANS = torch.tensor([[1.0, -0.5, 0.3, 0.8], [-0.7, 0.9, -0.2, 0.1]]).view(2, 1, 2, 2).double()
Z = torch.tensor([0.5, -1.0, 0.8, 0.1], dtype=torch.float64).view(1, 1, 2, 2)


@pytest.mark.parametrize("name", ["flow", "shifted flow", "edm"])
@pytest.mark.parametrize("proposal", ["uniform", "weight"])
def test_an_estimate_is_unbiased_in_every_family(name: str, proposal: str) -> None:
    schedule = SCHEDULES[name]
    teacher = GaussianTeacher(MEANS, std=0.4, schedule=schedule)
    cond, uncond = teacher.text_embeddings(["0"]), teacher.text_embeddings([""])

    def eps_hat(z_t: Tensor, t: Tensor) -> Tensor:
        n = len(z_t)
        return guided(teacher, z_t, t, cond.expand(n, 1, 2), uncond.expand(n, 1, 2), 4.0)

    expected = sds_gradient(teacher, Z, cond, uncond, 4.0, "sds", 4, 196).flatten()
    errors = {}
    for stratify in ("none", "render"):
        options = EstimatorOptions(
            num_draws=4, stratify=stratify, proposal=proposal, min_step=4, max_step=196, max_batch=100_000
        )
        estimator = CarvEstimator(schedule, options)
        generator = torch.Generator().manual_seed(3)
        grad = estimator.estimate(Z.expand(4000, 1, 2, 2), eps_hat, generator=generator).grad.flatten(1)
        errors[stratify] = grad.std(0) / len(grad) ** 0.5
        assert float(((grad.mean(0) - expected) / errors[stratify]).abs().max()) < 4
        assert float(errors[stratify].norm() / expected.norm()) < 0.1
    # strata take the variance over t out, never add to it
    assert float(errors["render"].norm()) < float(errors["none"].norm())


@pytest.mark.parametrize("name", ["flow", "edm"])
def test_variance_falls_with_the_number_of_independent_draws(name: str) -> None:
    schedule = SCHEDULES[name]
    teacher = GaussianTeacher(MEANS[:1], std=0.4, schedule=schedule)

    def eps_hat(z_t: Tensor, t: Tensor) -> Tensor:
        return teacher.eps_hat(z_t, t, torch.zeros(len(z_t), 1, 1))

    variance = {}
    for K in (1, 4):
        options = EstimatorOptions(num_draws=K, proposal="uniform", stratify="none", max_batch=100_000)
        estimator = CarvEstimator(schedule, options)
        out = estimator.estimate(Z.expand(6000, 1, 2, 2), eps_hat, generator=torch.Generator().manual_seed(K))
        variance[K] = float(out.grad.flatten(1).var(0).sum())
    assert variance[1] / variance[4] == pytest.approx(4, rel=0.15)


CONFIGS = json.loads(Path(__file__).with_name("scheduler_configs.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("model", CONFIGS)
def test_the_scheduler_of_a_model_that_people_use_is_read_or_refused(model: str) -> None:
    due = dict(CONFIGS[model])
    config = due.pop("config")
    if "refused" in due:
        with pytest.raises(CarvError, match=due["refused"]):
            NoiseSchedule.from_config(config)
        return
    schedule = NoiseSchedule.from_config(config)
    assert (schedule.family, schedule.prediction_type) == (due.pop("family"), due.pop("prediction_type"))
    middle, last = torch.tensor(499), torch.tensor(999)
    measured = {
        "last_abar": float(schedule.alphas_cumprod[-1]),
        "last_sigma": float(schedule.sigma(last)),
        "middle_sigma": float(schedule.sigma(middle)),  # half way, the shift applied
    }
    assert len(due) == 1
    assert {name: measured[name] for name in due} == pytest.approx(due, rel=1e-2)
