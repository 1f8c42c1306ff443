"""Score distillation via inversion: where the inversion goes, what its draws share, and what is left to chance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError
from carv_3d.guidance.inversion import InversionGrid
from carv_3d.guidance.sdi import SDIGuidance

SCHEDULE = NoiseSchedule.scaled_linear()
PLAIN = {"clip_sample": False}


def fill(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def eps_hat(x: Tensor, t: int) -> Tensor:
    return 0.3 * x + t / 1000


@pytest.mark.parametrize("steps", [3, 10, 50])
@pytest.mark.parametrize("more", [{}, {"steps_offset": 1}, {"timestep_spacing": "trailing"}])
def test_the_grid_is_that_of_diffusers(steps: int, more: dict[str, Any]) -> None:
    from diffusers import DDIMInverseScheduler

    scheduler = DDIMInverseScheduler(beta_schedule="scaled_linear", clip_sample=False, **more)
    scheduler.set_timesteps(steps)
    grid = InversionGrid.from_config(SCHEDULE, {**PLAIN, **more}, steps)
    assert list(grid.timesteps[1:]) == scheduler.timesteps.tolist()
    assert grid.timesteps[0] == int(grid.timesteps[1] - (1000 / steps if "timestep_spacing" in more else 1000 // steps))


@pytest.mark.parametrize("to_one", [True, False])
def test_a_step_is_that_of_diffusers(to_one: bool) -> None:
    from diffusers import DDIMInverseScheduler

    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    scheduler = DDIMInverseScheduler(**betas, clip_sample=False, set_alpha_to_one=to_one)
    scheduler.set_timesteps(10)
    grid = InversionGrid.from_config(SCHEDULE, {**PLAIN, "set_alpha_to_one": to_one}, 10)
    x, eps = fill(0, 1, 4, 2, 2), fill(1, 1, 4, 2, 2)
    for s, t in ((-100, 0), (300, 400)):
        expected = scheduler.step(eps, t, x).prev_sample  # it is given where the step ends
        torch.testing.assert_close(grid.step(x, eps, s, torch.tensor([t]), None), expected)
    noisy = grid.step(x, eps, 300, torch.tensor([400]), torch.ones_like(x)) - grid.step(
        x, eps, 300, torch.tensor([400]), None
    )
    a, b = SCHEDULE.alphas_cumprod[300], SCHEDULE.alphas_cumprod[400]
    torch.testing.assert_close(noisy, ((1 - a) / (1 - b) * (1 - b / a)).sqrt().expand_as(noisy), rtol=1e-4, atol=1e-5)


def test_draws_that_share_a_chain_are_what_each_would_be_alone() -> None:
    grid = InversionGrid.from_config(SCHEDULE, {**PLAIN, "steps_offset": 1}, 10)
    z, xi = fill(0, 2, 4, 3, 3), fill(1, 2, 3, 4, 3, 3)
    t = torch.tensor([[0, 650, 101], [980, 20, 102]])
    last = (t + torch.tensor([[70, 0, 30], [19, 5, 99]])).clamp(max=999)
    asked: list[int] = []

    def counted(x: Tensor, s: int) -> Tensor:
        asked.append(s)
        return eps_hat(x, s)

    together = grid.invert(z, t, last, xi, counted, 0.0, torch.randn_like)
    assert asked == [-99, 1, 101, 201, 301, 401, 501, 601, 701, 801, 901]  # each once
    for r in range(2):
        for k in range(3):
            one_by_one = (z[r : r + 1], t[r : r + 1, k : k + 1], last[r : r + 1, k : k + 1], xi[r : r + 1, k : k + 1])
            alone = grid.invert(*one_by_one, eps_hat, 0.0, torch.randn_like)
            torch.testing.assert_close(together[r : r + 1, k : k + 1], alone)
    first = grid.step(
        z[:1], eps_hat(z[:1], -99), -99, torch.tensor([1]), None
    )  # t = 101 lies above 1 and not above 101
    expected = grid.step(first, eps_hat(first, 1), 1, last[0, 2:], None)
    torch.testing.assert_close(together[:1, 2], expected)
    noisy = grid.invert(z, t, last, xi, eps_hat, 0.5, lambda x: torch.full_like(x, 2.0))
    alone = grid.invert(z[:1], t[:1, 1:2], last[:1, 1:2], xi[:1, 1:2], eps_hat, 0.5, lambda x: torch.full_like(x, 2.0))
    torch.testing.assert_close(noisy[:1, 1:2], alone)
    assert float((noisy - together)[0, 1].abs().min()) > 0


@pytest.mark.parametrize(
    ("schedule", "config", "steps", "said"),
    [
        (SCHEDULE, {}, 10, "clip_sample is true"),
        (SCHEDULE, {**PLAIN, "timestep_spacing": "linspace"}, 10, "timestep_spacing is 'linspace'"),
        (SCHEDULE, PLAIN, 1001, "inversion_n_steps is 1001, and the model has 1000 timesteps"),
        (NoiseSchedule.flow(), PLAIN, 10, "this is one of family flow"),
    ],
)
def test_what_has_no_inversion_is_named(schedule: NoiseSchedule, config: Any, steps: int, said: str) -> None:
    with pytest.raises(CarvError, match=said):
        InversionGrid.from_config(schedule, config, steps)


@pytest.fixture
def texts(teacher: Any) -> tuple[Tensor, Tensor]:
    return teacher.text_embeddings(["a mug"]), teacher.text_embeddings([""])


def test_the_ends_of_inversions_lie_in_strata(teacher: Any) -> None:
    guidance = SDIGuidance(teacher, inversion_n_steps=4, seed=0)
    g = guidance.generator
    delta = torch.stack([guidance._delta(3, 5, 1, g) for _ in range(400)])
    assert (int(delta.min()), int(delta.max())) == (0, 249)
    assert torch.equal((delta // 50).sort(-1).values, torch.arange(5).expand(400, 3, 5))  # one in each fifth
    # each draw by itself is uniform: means within 4 standard errors
    assert float((delta.double().mean((0, 1)) - 124.5).abs().max()) < 4 * (250**2 / 12 / 1200) ** 0.5
    halves = guidance._delta(3, 10, 2, g).view(3, 2, 5)  # of a measured step: two groups in strata of their own
    assert torch.equal((halves // 50).sort(-1).values, torch.arange(5).expand(3, 2, 5))
    over_renders = torch.stack([guidance._delta(5, 1, 1, g)[:, 0] for _ in range(50)])
    assert torch.equal((over_renders // 50).sort(-1).values, torch.arange(5).expand(50, 5))
    free = SDIGuidance(teacher, inversion_n_steps=4, seed=0, stratify="none")._delta(400, 5, 1, g)
    assert not torch.equal((free // 50).sort(-1).values, torch.arange(5).expand(400, 5))
    assert (int(free.min()), int(free.max())) == (0, 249)


def test_the_noise_is_what_leads_to_the_inversion(teacher: Any, texts: Any) -> None:
    z = fill(0, 2, 8, 8, 4).requires_grad_()
    guidance = SDIGuidance(teacher, t_anneal=False, num_draws=3, seed=0, inversion_eta=0.0, stratify="none")
    out = guidance(z, *texts, 0, rgb_as_latents=True)
    t, eps = out.estimate.t.flatten(), out.estimate.eps.flatten(0, 1)
    latents = out.latents.detach().repeat_interleave(3, 0)
    z_t = teacher.schedule.add_noise(latents, eps, t)
    with torch.no_grad():
        e = guidance.predict(z_t, t, out.cond.filled([x.repeat_interleave(3, 0) for x in out.cond.tensors]), out.scale)
    z_hat = teacher.schedule.z_from("epsilon", z_t, e.guided, t)
    f = out.estimate.residual.flatten(0, 1)
    torch.testing.assert_close(f, latents - z_hat, rtol=1e-3, atol=1e-3 * float(f.abs().max()))
    assert float(f.abs().max()) > 0.1


def test_a_resumed_run_draws_what_it_would_have(teacher: Any, texts: Any) -> None:
    z = fill(0, 1, 8, 8, 4).requires_grad_()
    first, second = (SDIGuidance(teacher, num_draws=2, seed=seed, inversion_n_steps=3) for seed in (0, 1))
    first(z, *texts, 0, rgb_as_latents=True)
    second.load_state_dict(first.state_dict())
    a, b = (guidance(z, *texts, 1, rgb_as_latents=True).estimate for guidance in (first, second))
    assert torch.equal(a.eps, b.eps)
    assert torch.equal(a.grad, b.grad)


def test_the_best_k_counts_the_inversion_as_upstream(teacher: Any, texts: Any) -> None:
    z = fill(0, 1, 8, 8, 4).requires_grad_()
    guidance = SDIGuidance(teacher, num_draws="auto", seed=0, inversion_n_steps=3)
    assert guidance.auto is not None
    asked: list[int] = []
    delta = guidance._delta
    guidance._delta = lambda R, K, halves, g: asked.append(halves) or delta(R, K, halves, g)  # type: ignore[method-assign, func-returns-value]
    steps = [guidance(z, *texts, step, rgb_as_latents=True) for step in range(11)]
    assert asked == [1] * 6 + [2] * 4 + [1]  # two groups in a measured step
    assert all(out.scalars["K"] == 16 for out in steps[6:10])
    assert "upstream_share" in steps[-1].scalars
    meter = guidance.estimator.meter
    assert meter is not None
    assert meter.counts["draws"] == sum(int(out.scalars["samples"]) for out in steps)  # not those of the inversion


def test_options_of_another_class_are_refused(teacher: Any) -> None:
    with pytest.raises(CarvError, match="options is"):
        SDIGuidance(teacher, {"num_draws": 2})  # type: ignore[arg-type]
