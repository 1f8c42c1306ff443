"""Real timesteps: the noise between whole ones, draws by the inverse CDF, and estimates that are unbiased for them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from exact import guided
from small_families import build_family
from small_models import build_sd_folder
from torch import Tensor

from carv_3d.core.continuous import ContinuousSchedule
from carv_3d.core.estimator import CarvEstimator, Draws, EstimatorOptions
from carv_3d.core.proposals import make_proposal
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.core.sds import sds_loss
from carv_3d.errors import CarvError
from carv_3d.guidance.sds import SDSGuidance
from carv_3d.teachers.gaussian import GaussianTeacher
from carv_3d.teachers.load import load_teacher

T = 12  # few, so that whole timesteps are another objective
WHOLE = {
    "vp": NoiseSchedule.scaled_linear(T, beta_start=0.02, beta_end=0.5), "flow": NoiseSchedule.flow(T, shift=3.0),
    "edm": NoiseSchedule.edm(T, sigma_min=0.05, sigma_max=20.0),
}  # fmt: skip
REAL = {name: ContinuousSchedule.from_schedule(schedule) for name, schedule in WHOLE.items()}
MEANS = torch.tensor([[1.0, -0.5, 0.3, 0.8], [-0.7, 0.9, -0.2, 0.1]]).view(2, 1, 2, 2).double()
Z = torch.tensor([0.5, -1.0, 0.8, 0.1], dtype=torch.float64).view(1, 1, 2, 2)
LOW, HIGH = 1, 9


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", REAL)
def test_at_whole_timesteps_nothing_changes_to_the_bit(name: str) -> None:
    whole, real = WHOLE[name], REAL[name]
    t = torch.arange(T)
    z, eps = (torch.randn(T, 3, generator=seeded(i)) for i in range(2))
    for given in (t, t.float(), t.double()):
        for method in ("alpha", "sigma", "snr", "norm", "w"):
            assert torch.equal(getattr(real, method)(given), getattr(whole, method)(t)), method
        assert torch.equal(real.add_noise(z, eps, given), whole.add_noise(z, eps, t))
        for actual, expected in zip(real.network_input(z, given), whole.network_input(z, t)):
            torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=1e-6, atol=1e-6)
    assert real.to("cpu") is real
    assert repr(real).startswith("ContinuousSchedule(")


@pytest.mark.parametrize("name", REAL)
def test_between_whole_timesteps_the_family_stays_what_it_is(name: str) -> None:
    schedule = REAL[name]
    t = (T - 1) * torch.rand(500, generator=seeded(), dtype=torch.float64)
    z, eps = (torch.randn(500, 3, generator=seeded(i), dtype=torch.float64) for i in range(2))
    alpha, sigma = schedule.alpha(t).double(), schedule.sigma(t).double()
    kept = {"vp": alpha**2 + sigma**2, "flow": alpha + sigma, "edm": alpha}[name]
    torch.testing.assert_close(kept, torch.ones_like(kept), rtol=1e-6, atol=1e-6)
    low, high = t.floor().long(), t.ceil().long()
    assert bool(((WHOLE[name].sigma(low) <= sigma) & (sigma <= WHOLE[name].sigma(high))).all())
    times = schedule.network_input(z, t)[1].double()
    due = {"vp": t, "flow": T * sigma, "edm": sigma.log() / 4}[name]
    torch.testing.assert_close(times, due, rtol=1e-5, atol=1e-5)
    z_t = schedule.add_noise(z, eps, t)
    for kind in ("epsilon", "sample", "flow_prediction", *{"vp": ["v_prediction"], "edm": ["edm"]}.get(name, [])):
        prediction = schedule.target(kind, z, eps, t)
        torch.testing.assert_close(schedule.eps_from(kind, z_t, prediction, t), eps, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(schedule.z_from(kind, z_t, prediction, t), z, rtol=1e-5, atol=1e-5)


def test_flow_matching_without_shift_is_exact() -> None:
    schedule = ContinuousSchedule.flow(1000)
    t = torch.tensor([0.25, 499.5, 998.125])
    torch.testing.assert_close(schedule.sigma(t), (t + 1) / 1000)
    torch.testing.assert_close(schedule.network_input(torch.ones(3, 1), t)[1], t + 1)
    shifted, s = ContinuousSchedule.flow(1000, shift=3.0), (t + 1) / 1000
    torch.testing.assert_close(shifted.sigma(t), 3 * s / (1 + 2 * s), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["uniform", "weight", "adaptive"])
@pytest.mark.parametrize("name", REAL)
def test_timesteps_are_those_of_the_inverse_cdf(name: str, kind: str) -> None:
    proposal = make_proposal(kind, REAL[name], "sds", LOW, HIGH, **({"bins": 4} if kind == "adaptive" else {}))
    proposal.update(torch.tensor([2.5, 6.25, 8.0]), torch.tensor([4.0, 1.0, 9.0]))
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    t, ratio = proposal.sample(u)
    assert t.dtype == torch.float32
    assert float(t.min()) >= LOW
    assert float(t.max()) <= HIGH
    assert len(proposal.q) == HIGH - LOW
    edges = torch.cat([torch.zeros(1).double(), proposal.q.cumsum(0)])
    cell = (t.double() - LOW).floor().clamp_max(HIGH - LOW - 1).long()
    cdf = edges[cell] + (t.double() - LOW - cell) * proposal.q[cell]
    torch.testing.assert_close(cdf, u, rtol=0, atol=1e-6)
    if kind == "weight":  # in each interval the mean of w at its ends
        w = WHOLE[name].weights("sds")[LOW : HIGH + 1].double()
        torch.testing.assert_close(proposal.q, (w[:-1] + w[1:]) / (w[:-1] + w[1:]).sum())
    inside = (t - t.round()).abs() > 1e-5
    p = 1 / (HIGH - LOW)
    torch.testing.assert_close(ratio[inside], (p / proposal.q[cell])[inside])
    assert float(ratio.mean()) == pytest.approx(1, abs=1e-3)
    if kind == "uniform":
        assert bool((ratio == 1).all())
    else:
        assert float(ratio.std()) > 0.05


def expected(schedule: NoiseSchedule, teacher: GaussianTeacher, cond: Tensor, uncond: Tensor, s: float) -> Tensor:
    """The mean of w(t) E[eps_hat] over real t, by the midpoints of small steps."""
    n = 100 * (HIGH - LOW)
    t = LOW + (torch.arange(n, dtype=torch.float64) + 0.5) / 100
    e, e0 = (teacher.expected_eps_hat(Z.expand(n, 1, 2, 2), t, x.expand(n, 1, 2)) for x in (cond, uncond))
    return (schedule.w(t).double().view(n, 1, 1, 1) * (e0 + s * (e - e0))).mean(0).flatten()


@pytest.mark.parametrize("proposal", ["uniform", "weight", "adaptive"])
@pytest.mark.parametrize("name", REAL)
def test_an_estimate_is_unbiased_at_real_timesteps(name: str, proposal: str) -> None:
    schedule = REAL[name]
    teacher = GaussianTeacher(MEANS, std=0.4, schedule=schedule)
    cond, uncond = teacher.text_embeddings(["0"]), teacher.text_embeddings([""])
    due = expected(schedule, teacher, cond, uncond, 4.0)

    def eps_hat(z_t: Tensor, t: Tensor) -> Tensor:
        n = len(z_t)
        assert not torch.equal(t, t.round())
        return guided(teacher, z_t, t, cond.expand(n, 1, 2), uncond.expand(n, 1, 2), 4.0)

    for stratify, antithetic in (("none", False), ("render", False), ("global", True)):
        options = EstimatorOptions(
            num_draws=4, stratify=stratify, antithetic=antithetic, proposal=proposal, min_step=LOW, max_step=HIGH,
            max_batch=100_000, adaptive_bins=4,
        )  # fmt: skip
        estimator, generator = CarvEstimator(schedule, options), seeded(3)
        if proposal == "adaptive":
            for _ in range(5):  # something to adapt to
                estimator.estimate(Z.expand(32, 1, 2, 2), eps_hat, generator=generator)
        steps, R = (1, 4000) if stratify != "global" else (400, 4)  # whose renders are not independent
        grads = [estimator.estimate(Z.expand(R, 1, 2, 2), eps_hat, generator=generator).grad for _ in range(steps)]
        grad = grads[0].flatten(1) if steps == 1 else torch.stack([g.mean(0).flatten() for g in grads])
        error = grad.std(0) / len(grad) ** 0.5
        assert float(((grad.mean(0) - due) / error).abs().max()) < 4
        assert float(error.norm() / due.norm()) < 0.1
    # whole timesteps alone are another objective, which this would notice
    t = torch.arange(LOW, HIGH + 1)
    e, e0 = (teacher.expected_eps_hat(Z.expand(len(t), 1, 2, 2), t, x.expand(len(t), 1, 2)) for x in (cond, uncond))
    discrete = (schedule.w(t).view(-1, 1, 1, 1) * (e0 + 4.0 * (e - e0))).mean(0).flatten()
    assert float((discrete - due).norm() / due.norm()) > 0.005


def test_strata_have_one_draw_each() -> None:
    estimator = CarvEstimator(ContinuousSchedule.flow(), EstimatorOptions(num_draws=8, proposal="uniform"))
    t = estimator.draw(torch.zeros(5, 2), seeded()).t
    assert torch.equal(((t - 20) / 960 * 8).floor().sort(1).values, torch.arange(8.0).expand(5, 8))
    estimator.set_range(100, 101)
    assert bool(((estimator.draw(torch.zeros(5, 2), seeded()).t - 100.5).abs() <= 0.5).all())


def test_a_flow_transformer_is_given_real_times(tmp_path: Path) -> None:
    teacher = load_teacher(str(build_family("Stable Diffusion 3", tmp_path / "model")), device="cpu")
    teacher.schedule = schedule = ContinuousSchedule.from_schedule(teacher.schedule)
    text, z = teacher.text_embeddings(["a mug"]), torch.randn(1, 4, 8, 8, generator=seeded()).requires_grad_()
    draws = Draws(torch.tensor([[123.25, 700.5]]), torch.randn(1, 2, 4, 8, 8, generator=seeded(1)))
    out = CarvEstimator(schedule).estimate(z, teacher.eps_hat, text, draws=draws)
    total = torch.zeros_like(z)
    for t, eps in zip(draws.t[0], draws.eps[0]):
        sigma = schedule.sigma(t)
        with torch.no_grad():
            z_t = (1 - sigma) * z + sigma * eps
            conditions = teacher.conditions(text)
            v = teacher.network(z_t, timestep=1000 * sigma.view(1), return_dict=False, **conditions)[0]
            total += schedule.w(t) * (z_t + (1 - sigma) * v - eps) / 2
    torch.testing.assert_close(out.grad, total.detach(), rtol=1e-4, atol=1e-5)
    sds_loss(z, teacher.eps_hat, schedule, cond=text, num_draws=4, generator=seeded()).backward()
    assert z.grad is not None
    assert z.grad.abs().max() > 1e-3


# --- what is refused


FLOW = REAL["flow"]


@pytest.mark.parametrize(
    ("t", "said"),
    [
        (torch.tensor([-0.5]), r"t goes from -0.5 to -0.5; the timesteps of this schedule are 0 to 11"),
        (torch.tensor([3, 11.5]), r"t goes from 3 to 11.5; the timesteps"),
        (torch.tensor([math.nan]), r"t goes from nan to nan"),
        (torch.tensor([1.0], device="meta"), r"t is a tensor without data; it must be a tensor of timesteps, as"),
        (torch.tensor([True]), r"t is of type torch.bool; timesteps are real numbers"),
        (torch.tensor([1j]), r"t is of type torch.complex64"),
        (5.5, r"t is 5.5; it must be a tensor of timesteps, as torch.tensor\(\[500.5\]\)"),
    ],
)
def test_timesteps_that_cannot_be_are_named(t: Any, said: str) -> None:
    for method in (FLOW.alpha, FLOW.sigma, FLOW.w, REAL["vp"].sigma, REAL["edm"].norm):
        with pytest.raises(CarvError, match=said):
            method(t)


def test_what_needs_whole_timesteps_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CarvError, match=r"control_variate learns at whole timesteps, .* take a NoiseSchedule"):
        CarvEstimator(FLOW, EstimatorOptions(control_variate=True))
    with pytest.raises(CarvError, match="min_step and max_step are 5; real timesteps need max_step above min_step"):
        CarvEstimator(FLOW, EstimatorOptions(min_step=5, max_step=5))
    with pytest.raises(CarvError, match=r"schedule is a list; it must be a NoiseSchedule"):
        ContinuousSchedule.from_schedule([1])  # type: ignore[arg-type]
    with pytest.raises(CarvError, match=r"guidance draws whole timesteps alone, .* use sds_loss or a CarvEstimator"):
        SDSGuidance(GaussianTeacher(MEANS, schedule=FLOW))
    whole, latents = CarvEstimator(WHOLE["flow"]), torch.zeros(1, 2)
    draws = Draws(torch.tensor([[1.5]]), torch.zeros(1, 1, 2))
    with pytest.raises(CarvError, match=r"the draws' t has type torch.float32 .* it must be \(R, K\) of torch.int64"):
        whole.estimate(latents, lambda z_t, t: z_t, draws=draws)
    for t, said in ((math.inf, "of finite numbers"), (11.5, "max_step is 12, but the teacher's timesteps end at 11")):
        with pytest.raises(CarvError, match=said):
            CarvEstimator(FLOW).estimate(
                latents, lambda z_t, t: z_t, draws=Draws(torch.tensor([[t]]), torch.zeros(1, 1, 2))
            )
    teacher = load_teacher(str(build_sd_folder(tmp_path / "model")), device="cpu")
    teacher.schedule = ContinuousSchedule.from_schedule(teacher.schedule)
    with pytest.raises(CarvError, match="was trained at whole timesteps alone, and its schedule is a ContinuousSched"):
        teacher.eps_hat(torch.zeros(1, 4, 8, 8), torch.tensor([10.5]), teacher.text_embeddings(["a mug"]))
