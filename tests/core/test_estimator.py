"""The estimator's mechanics: exact gradients, dropped draws, state, library use."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from estimators import SCHEDULE, SHAPE, make, model, seeded, some_latents
from torch import Tensor, nn

import carv_3d
from carv_3d.core.costs import CostMeter
from carv_3d.core.estimator import CarvEstimator, Draws, EstimatorOptions
from carv_3d.core.reduction import surrogate_loss
from carv_3d.errors import CarvError


@pytest.mark.parametrize("R", [1, 2, 3, 7])
def test_one_uniform_draw_is_textbook_sds_to_the_last_bit(R: int) -> None:
    latents = some_latents(R)
    out = make(num_draws=1, proposal="uniform", stratify="none").estimate(latents, model, generator=seeded(1))
    out.loss.backward()

    t, eps = out.t[:, 0], out.eps[:, 0]
    abar = SCHEDULE.alphas_cumprod[t].view(-1, 1, 1, 1)
    z = latents.detach()
    f = (1 - abar) * (model(abar**0.5 * z + (1 - abar) ** 0.5 * eps, t) - eps)
    assert latents.grad is not None
    assert torch.equal(latents.grad, f / R)
    assert torch.equal(out.residual[:, 0], f)
    assert torch.equal(out.weights, torch.ones(R, 1))
    torch.testing.assert_close(out.loss.detach(), 0.5 * f.square().sum() / R)  # threestudio's value


@pytest.mark.parametrize("K", [1, 2])
@pytest.mark.parametrize("proposal", ["weight", "adaptive"])
def test_a_model_may_write_to_its_arguments(K: int, proposal: str) -> None:
    cond, given = torch.ones(2, 4, 1, 1), torch.ones(2, 4, 1, 1)

    def predicts(z_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return model(z_t * cond, t)

    def writes(z_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        out = predicts(z_t, t, cond)
        for x in (z_t, t, cond):
            x.zero_()
        return out

    def residual(z_t: Tensor, t: Tensor, eps: Tensor, cond: Tensor) -> Tensor:
        return eps.neg_().add_(predicts(z_t, t, cond))

    latents = some_latents(2)
    plain, writing = (make(num_draws=K, proposal=proposal) for _ in range(2))
    for seed in (1, 2):
        expected = plain.estimate(latents, predicts, cond, seeded(seed))
        out = writing.estimate(latents, writes, given, seeded(seed))
        assert torch.equal(out.grad, expected.grad)
        assert torch.equal(out.t, expected.t)
    assert torch.equal(given, cond)
    other = make(num_draws=K, proposal=proposal).estimate_residual(latents, residual, cond, seeded(1))
    assert torch.equal(other.eps, make(num_draws=K, proposal=proposal).draw(latents, seeded(1)).eps)


@pytest.mark.parametrize("proposal", ["uniform", "weight", "adaptive"])
def test_gradient_is_the_weighted_mean_over_renders(proposal: str) -> None:
    latents = some_latents(3)
    out = make(num_draws=6, proposal=proposal, antithetic=True).estimate(latents, model, generator=seeded(1))
    out.loss.backward()
    expected = torch.zeros_like(latents)
    for r in range(3):
        for k in range(6):
            expected[r] += out.weights[r, k] * out.residual[r, k] / 6 / 3
    torch.testing.assert_close(latents.grad, expected)
    assert torch.equal(latents.grad, out.grad / 3)  # type: ignore[arg-type]


def test_a_small_gradient_keeps_its_bits() -> None:
    # threestudio's target form rounds it to the grid of z
    z = (1000 * torch.ones(3, 2)).requires_grad_()
    g = torch.full((3, 2), 1e-5)
    surrogate_loss(z, g).backward()
    assert torch.equal(z.grad, g / 3)  # type: ignore[arg-type]
    expected = torch.autograd.grad(0.5 * (z - (z - g).detach()).square().sum() / 3, z)[0]
    assert not torch.allclose(expected, g / 3)


@pytest.mark.parametrize("K", [1, 3])
def test_cond_goes_with_its_render(K: int) -> None:
    cond = (torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.1, 0.2, 0.3]))

    def echo(z_t: Tensor, t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).view(-1, 1, 1, 1).expand_as(z_t)

    out = make(num_draws=K, max_batch=2, weighting="uniform").estimate(some_latents(), echo, cond, seeded(1))
    predicted = out.residual + out.eps
    expected = (cond[0] * cond[1]).view(3, 1, 1, 1, 1).expand_as(predicted)
    torch.testing.assert_close(predicted, expected)


@pytest.mark.parametrize("K", [1, 8])
def test_one_upstream_call_and_one_backward_per_render_whatever_k(K: int) -> None:
    forward: list[int] = []
    backward: list[int] = []
    encoder = nn.Linear(2, 36)
    encoder.register_forward_hook(lambda m, i, o: forward.append(len(o)))
    encoder.register_full_backward_hook(lambda m, i, o: backward.append(len(o[0])))  # type: ignore
    theta = torch.randn(1, 2, generator=seeded()).requires_grad_()
    R = 4
    for r in range(R):  # one by one, as a renderer may work
        latents = encoder(theta).view(1, *SHAPE)
        make(num_draws=K).estimate(latents, model, generator=seeded(r)).loss.backward()
    assert (forward, backward) == ([1] * R, [1] * R)
    latents = encoder(theta.expand(R, 2)).view(R, *SHAPE)
    make(num_draws=K).estimate(latents, model, generator=seeded(0)).loss.backward()
    assert (forward[R:], backward[R:]) == ([R], [R])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_draw_that_is_not_finite_is_dropped_and_counted(bad: float) -> None:
    clean = make(num_draws=4)
    draws = clean.draw(some_latents(2), seeded(1))
    expected = clean.estimate(some_latents(2), model, draws=draws)
    broken = draws.t[1, 2]

    def sometimes(z_t: Tensor, t: Tensor) -> Tensor:
        out = model(z_t, t)
        out[t == broken, 0, 1, 1] = bad
        return out

    latents = some_latents(2)
    out = clean.estimate(latents, sometimes, draws=draws)
    assert out.scalars["nonfinite"] == 1
    assert out.finite.tolist() == [[True] * 4, [True, True, False, True]]
    kept = expected.weights[..., None, None, None] * expected.residual
    kept[1, 2] = 0  # and the mean is still over four
    torch.testing.assert_close(out.grad, kept.mean(1))
    out.loss.backward()
    assert bool(torch.isfinite(latents.grad).all())  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["options", "call"])
def test_grad_clip_cuts_each_draw_before_p_over_q_and_the_mean(where: str) -> None:
    plain = make(num_draws=4)
    draws = plain.draw(some_latents(), seeded(1))
    free = plain.estimate(some_latents(), model, draws=draws)
    if where == "options":
        out = make(num_draws=4, grad_clip=0.2).estimate(some_latents(), model, draws=draws)
    else:
        out = plain.estimate(some_latents(), model, draws=draws, grad_clip=0.2)
    clipped = free.residual.clamp(-0.2, 0.2)
    assert float((clipped != free.residual).float().mean()) > 0.2
    torch.testing.assert_close(out.grad, (free.weights[..., None, None, None] * clipped).mean(1))


def test_set_range_moves_the_timesteps() -> None:
    estimator = make(num_draws=8, proposal="uniform")
    for low, high in ((20, 980), (300, 310), (500, 500)):
        estimator.set_range(low, high)
        t = estimator.estimate(some_latents(), model, generator=seeded(1)).t
        assert low <= int(t.min()) <= int(t.max()) <= high
    with pytest.raises(CarvError, match="end at 999"):
        estimator.set_range(20, 1000)


def test_explicit_draws_are_used_as_they_are_and_checked() -> None:
    g = seeded(3)
    draws = Draws(
        torch.randint(20, 981, (3, 5), generator=g),
        torch.randn(3, 5, *SHAPE, generator=g),
        torch.rand(3, 5, generator=g),
    )
    out = make(num_draws=2, antithetic=True).estimate(some_latents(), model, draws=draws)
    assert torch.equal(out.t, draws.t)
    assert torch.equal(out.weights, draws.weights)  # type: ignore[arg-type]
    no_weights = make().estimate(some_latents(), model, draws=Draws(draws.t, draws.eps))
    assert torch.equal(no_weights.weights, torch.ones(3, 5))
    for bad in (
        Draws(draws.t[:2], draws.eps, draws.weights),
        Draws(draws.t, draws.eps[..., :2], draws.weights),
        Draws(draws.t, draws.eps, torch.ones(3)),
        Draws(draws.t, draws.eps.transpose(2, 3), draws.weights),
    ):
        with pytest.raises(CarvError, match="the draws have"):
            make().estimate(some_latents(), model, draws=bad)
    with pytest.raises(CarvError, match="5 draws cannot be laid out in groups of 2"):
        make().estimate(some_latents(), model, draws=Draws(draws.t, draws.eps, group_size=2))
    for t in (-1, 1000):  # a negative one would index from the end
        with pytest.raises(CarvError):
            make().estimate(some_latents(), model, draws=Draws(draws.t * 0 + t, draws.eps))


def test_adaptive_is_taught_the_group_that_was_drawn_and_uses_it_a_step_later() -> None:
    taught: list[tuple[Tensor, Tensor]] = []
    estimator = make(num_draws=4, proposal="adaptive", antithetic=True)
    update = estimator.proposal.update
    estimator.proposal.update = (  # type: ignore[method-assign]
        lambda t, value: (taught.append((t, value)), update(t, value))[1]  # type: ignore[func-returns-value]
    )
    before = estimator.proposal.q.clone()
    out = estimator.estimate(some_latents(), model, generator=seeded(1))
    torch.testing.assert_close(out.weights, (1 / (961 * before[out.t - 20])).float())  # its own draws played no part
    t, value = taught[0]
    pairs = (out.residual[:, 0::2] + out.residual[:, 1::2]) / 2
    assert torch.equal(t, out.t[:, 0::2])
    torch.testing.assert_close(value, pairs.flatten(2).square().sum(-1))
    assert not torch.allclose(estimator.proposal.q, before)
    # explicit draws teach nothing
    estimator.estimate(some_latents(), model, draws=Draws(out.t, out.eps, out.weights, 2))
    assert len(taught) == 1


def test_a_pair_with_one_draw_that_is_not_finite_teaches_nothing() -> None:
    estimator = make(num_draws=2, proposal="adaptive", antithetic=True)
    draws: list[Tensor] = []

    def half(z_t: Tensor, t: Tensor) -> Tensor:
        draws.append(t)
        out = model(z_t, t)
        out[1] = float("nan")  # of the first render's pair; the other two are whole
        return out

    estimator.estimate(some_latents(), half, generator=seeded(1))
    count = estimator.proposal.state_dict()["count"]
    t = draws[0].view(3, 2)[:, 0]
    expected = torch.zeros_like(count).index_add(0, t[1:] * 50 // 1000, torch.ones(2).to(count))
    assert torch.equal(count, expected)


def test_adaptive_leaves_dropped_draws_out() -> None:
    estimator = make(num_draws=4, proposal="adaptive")
    before = estimator.proposal.q.clone()
    estimator.estimate(some_latents(), lambda z_t, t: z_t * float("nan"), generator=seeded(1))
    assert torch.equal(estimator.proposal.q, before)


@pytest.mark.parametrize("proposal", ["uniform", "weight", "adaptive"])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("control_variate", [False, True])
def test_a_resumed_estimator_equals_one_that_was_not_stopped(
    proposal: str, world_size: int, control_variate: bool
) -> None:
    options = {"proposal": proposal, "stratify": "global", "world_size": world_size}
    options |= {"control_variate": control_variate}
    first, second, g = make(**options), make(**options), seeded(1)
    first.set_range(100, 800)
    for _ in range(3):
        first.estimate(some_latents(), model, generator=g)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    h = torch.Generator()
    h.set_state(g.get_state())
    a, b = (e.estimate(some_latents(), model, generator=x) for e, x in ((first, g), (second, h)))
    assert torch.equal(a.t, b.t)
    assert torch.equal(a.grad, b.grad)


def test_ranks_stratify_together_and_scalars_say_what_was_done() -> None:
    parts = [
        make(
            num_draws=1,
            stratify="global",
            proposal="uniform",
            rank=rank,
            world_size=4,
            min_step=0,
            max_step=999,
        ).estimate(some_latents(2), model, generator=seeded(rank))
        for rank in range(4)
    ]
    assert sorted((torch.cat([p.t for p in parts]).flatten() // 125).tolist()) == list(range(8))
    s = parts[0].scalars
    assert (s["K"], s["samples"], s["nonfinite"], s["ess"]) == (1, 2, 0, 2)
    assert "snr" not in s  # one draw says nothing of its own noise
    out = make(num_draws=4, proposal="weight").estimate(some_latents(2), model, generator=seeded(0))
    u = (out.weights[..., None, None, None] * out.residual).flatten(2)
    assert out.scalars["snr"] == pytest.approx(float(u.mean(1).square().sum() / (u.var(1).sum() / 4)), rel=1e-4)
    assert out.scalars["ess"] == pytest.approx(float(out.weights.sum() ** 2 / out.weights.square().sum()), rel=1e-5)
    assert out.scalars["grad_norm"] == pytest.approx(float((out.grad / 2).norm()), rel=1e-5)


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("proposal", ["uniform", "weight", "adaptive"])
def test_latents_and_generator_may_be_on_any_device(proposal: str, device: str) -> None:
    here = make(proposal=proposal, stratify="global")  # the schedule is on the CPU, and follows the latents
    cpu = here.estimate(some_latents(), model, generator=seeded(1))
    there = make(proposal=proposal, stratify="global")
    latents = some_latents().detach().to(device).requires_grad_()
    out = there.estimate(latents, model, generator=seeded(1))  # a CPU generator gives the same everywhere
    out.loss.backward()
    assert torch.equal(out.t.cpu(), cpu.t)
    torch.testing.assert_close(out.grad.cpu(), cpu.grad)
    assert latents.grad is not None
    own = torch.Generator(device).manual_seed(1)
    again = make(proposal=proposal).estimate(latents, model, generator=own)
    assert again.grad.device.type == device
    state = there.state_dict()
    here.load_state_dict(state)
    torch.testing.assert_close(here.proposal.q, there.proposal.q.cpu())


def test_half_precision_latents_do_not_overflow_in_the_mean() -> None:
    latents = torch.full((1, *SHAPE), 0.5, dtype=torch.float16, requires_grad=True)
    out = make(num_draws=4, proposal="uniform", stratify="none").estimate(
        latents, lambda z_t, t: torch.full_like(z_t, 3e4), generator=seeded(0)
    )
    assert out.residual.dtype == torch.float32
    assert bool(torch.isfinite(out.grad).all())
    out.loss.backward()
    assert latents.grad is not None
    assert latents.grad.dtype == torch.float16


def test_another_residual_runs_on_the_same_core() -> None:
    def residual(z_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return SCHEDULE.w(t, "sds").view(-1, 1, 1, 1) * (model(z_t, t) - eps)

    a = make().estimate(some_latents(), model, generator=seeded(1))
    b = make().estimate_residual(some_latents(), residual, generator=seeded(1))
    assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("max_batch", [16, 5, 1])
def test_what_a_residual_returns_besides_f_comes_back_by_draw(max_batch: int) -> None:
    def residual(z_t: Tensor, t: Tensor, eps: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        return eps, torch.stack([t.float(), number], dim=1)

    estimator = CarvEstimator(SCHEDULE, EstimatorOptions(num_draws=4, max_batch=max_batch))
    estimate = estimator.estimate_residual(
        some_latents(3), residual, torch.tensor([5.0, 6.0, 7.0]), generator=seeded(1)
    )
    assert estimate.extra is not None
    assert estimate.extra.shape == (3, 4, 2)
    assert torch.equal(estimate.extra[..., 0], estimate.t.float())
    assert torch.equal(estimate.extra[..., 1], torch.tensor([5.0, 6.0, 7.0])[:, None].expand(3, 4))


def test_the_meter_counts() -> None:
    meter = CostMeter()
    estimator = CarvEstimator(SCHEDULE, EstimatorOptions(num_draws=4), meter=meter)
    estimator.estimate(some_latents(3), model, generator=seeded(1))
    assert meter.counts["draws"] == 12
    assert meter.seconds["denoise"] > 0


def test_as_a_library_in_five_lines() -> None:
    theta = torch.zeros(2, *SHAPE, requires_grad=True)
    target = torch.ones(2, *SHAPE)
    eps_hat = lambda z_t, t: (z_t - SCHEDULE.alpha(t).view(-1, 1, 1, 1)) / SCHEDULE.sigma(t).view(-1, 1, 1, 1)  # noqa: E731

    optimizer = torch.optim.SGD([theta], lr=1.0)
    for _ in range(30):
        loss = carv_3d.sds_loss(theta, eps_hat, SCHEDULE, generator=seeded(0), num_draws=8)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(theta.detach(), target, atol=0.02, rtol=0)  # all the teacher's mass is at 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_draws": 0}, "from 1 to"),
        ({"num_draws": 3, "antithetic": True}, "set num_draws to 4"),
        ({"num_draws": 2.5}, "whole number"),
        ({"proposal": "best"}, "uniform, weight, adaptive"),
        ({"stratify": "all"}, "none, render, global"),
        ({"weighting": "dream"}, "sds, uniform, fantasia3d"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"min_step": 500, "max_step": 20}, "above max_step"),
        ({"grad_clip": 0.0}, "grad_clip is 0"),
        ({"rank": 2, "world_size": 2}, "rank is 2"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(CarvError, match=said):
        EstimatorOptions(**options)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(CarvError, match=r"eps_hat returned \(12, 8, 3, 3\)"):
        make().estimate(some_latents(), lambda z_t, t: torch.cat([z_t, z_t], 1))
    with pytest.raises(CarvError, match="each must begin with 3, the renders"):
        make().estimate(some_latents(), model, torch.ones(2))
    with pytest.raises(CarvError, match="each must begin with 3, the renders"):
        make().estimate(some_latents(), model, torch.ones(4))
    with pytest.raises(CarvError, match="come in pairs"):
        make(antithetic=True).estimate(some_latents(), model, num_draws=3)
