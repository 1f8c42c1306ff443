"""A distillation: the work of a step, its gradient against a slow reference, what it finds, resuming, trouble."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import MEANS, SCHEDULE, SHAPE, LinearUNet, small
from torch import Tensor, nn

from carv_3d.core.estimator import Draws, EstimatorOptions
from carv_3d.distill.dmd import DistributionMatching
from carv_3d.distill.loop import Distillation
from carv_3d.distill.network import FakeScore, OneStepGenerator
from carv_3d.distill.options import DistillOptions
from carv_3d.distill.prompts import ListedPrompts
from carv_3d.distill.updates import Updates
from carv_3d.errors import CarvError
from carv_3d.objectives.table import OBJECTIVES
from carv_3d.runs.checkpoint import load_checkpoint, save_checkpoint
from carv_3d.runs.ranks import Ranks
from carv_3d.teachers.gaussian import GaussianTeacher


def weights(distillation: Distillation) -> list[Tensor]:
    return [p.detach().clone() for module in (distillation.generator, distillation.fake) for p in module.parameters()]


def test_the_work_of_a_step() -> None:
    distillation = small(batch_size=3, num_draws=8, fake_updates=2, fake_draws=2, max_batch=100)
    backwards = []
    distillation.generator.unet.b.register_hook(lambda g: backwards.append(1))
    figures = distillation.train_step()
    teacher = distillation.teacher._teacher
    assert teacher.batch_sizes == [2 * 3 * 8]  # guided: cond and uncond
    # the generator: once for its update, once more for the fake score's second
    assert distillation.generator.unet.batch_sizes == [3, 3]
    assert distillation.fake.unet.batch_sizes == [3 * 8, 3 * 2, 3 * 2]
    assert backwards == [1]
    assert figures["nfe"] == 48 + 6 + 24 + 12
    assert figures["K"] == 8
    assert figures["samples"] == 24
    assert {name for name in figures if name.startswith("seconds_")} == {
        f"seconds_{name}" for name in ("text", "generate", "denoise", "backward", "train_fake", "update")
    }
    assert sum(v for k, v in figures.items() if k.startswith("seconds_")) <= figures["seconds"]


def test_the_gradient_is_that_of_a_loop_over_samples_and_draws() -> None:
    distillation = small(batch_size=2, num_draws=4)
    before = {name: g.get_state() for name, g in distillation.generators.items()}
    z, text, estimate = distillation.backward()
    got = [p.grad.clone() for p in distillation.generator.parameters()]
    for name, g in distillation.generators.items():
        g.set_state(before[name])
    z2, _ = distillation.generate(2)
    torch.testing.assert_close(z, z2)
    teacher, none = distillation.teacher._teacher, distillation.uncond
    inner = torch.zeros(())
    for r in range(2):
        for k in range(4):
            t, eps, sample = estimate.t[r, k].view(1), estimate.eps[r, k][None], z2[r : r + 1].detach()
            z_t = SCHEDULE.add_noise(sample, eps, t)
            hats = [teacher.eps_hat(z_t, t, e) for e in (text[r : r + 1], none)]
            real = SCHEDULE.z_from("epsilon", z_t, hats[1] + 2.0 * (hats[0] - hats[1]), t)
            fake = SCHEDULE.z_from("epsilon", z_t, distillation.fake.eps_hat(z_t, t, text[r : r + 1]), t)
            f = ((fake - real) / (sample - real).abs().mean()).detach()
            inner = inner + (f * z2[r : r + 1]).mean() / (2 * 4)
    expected = torch.autograd.grad(inner, list(distillation.generator.parameters()))
    for gradient, reference in zip(got, expected):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-6)


class GaussianUNet(nn.Module):
    """The exact score of N(m, L L^T), m and L trained: eps_hat = sigma (alpha^2 L L^T + sigma^2)^-1 (z_t - alpha m)."""

    def __init__(self) -> None:
        super().__init__()
        self.m, self.L = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.eye(4))

    def forward(self, z_t: Tensor, t: Tensor, encoder_hidden_states: Tensor, return_dict: bool = True) -> Any:
        alpha, sigma = (x.view(-1, 1, 1) for x in (SCHEDULE.alpha(t), SCHEDULE.sigma(t)))
        v = alpha**2 * (self.L @ self.L.T) + sigma**2 * torch.eye(4)
        away = z_t.flatten(1)[:, :, None] - alpha * self.m[:, None]
        return ((sigma * torch.linalg.solve(v, away)).view_as(z_t),)


def test_a_generator_finds_the_teachers_distribution() -> None:
    teacher = GaussianTeacher(MEANS[:1], std=0.4)
    options = DistillOptions(
        batch_size=32, guidance_scale=1.0, lr=0.02, fake_lr=0.02, fake_draws=8, ema=0.98,
        antithetic=True, max_batch=1000,
    )  # fmt: skip
    generator = OneStepGenerator(LinearUNet(text=1), SCHEDULE, "v_prediction")
    fake = FakeScore(GaussianUNet(), SCHEDULE)
    distillation = Distillation(teacher, options, ListedPrompts(["0"]), generator=generator, fake=fake)

    def moments() -> tuple[Tensor, Tensor]:
        eps = torch.randn(4000, *SHAPE, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            z = distillation.averaged()(eps, teacher.text_embeddings(["0"]).expand(4000, 1, 1)).flatten(1)
        return z.mean(0), torch.cov(z.T)

    mean, cov = moments()
    assert float((mean - MEANS[0].flatten()).norm()) > 0.5
    for _ in range(200):
        distillation.train_step()
    mean, cov = moments()
    assert float((mean - MEANS[0].flatten()).abs().max()) < 0.05
    assert float((cov - 0.16 * torch.eye(4)).abs().max()) < 0.04


@pytest.mark.parametrize("options", [{}, {"proposal": "adaptive", "stratify": "global", "antithetic": True}])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = small(**options)
    figures = [whole.train_step() for _ in range(6)]
    first = small(**options)
    for _ in range(3):
        first.train_step()
    save_checkpoint(tmp_path / "checkpoint", first.state_dict())
    again = small(**options)
    again.load_state_dict(load_checkpoint(tmp_path / "checkpoint")[0])
    assert again.step == 3
    for k in range(3, 6):
        row = again.train_step()
        assert {n: v for n, v in row.items() if "seconds" not in n} == {
            n: v for n, v in figures[k].items() if "seconds" not in n
        }
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again)))
    assert all(torch.equal(v, again.average.state[k]) for k, v in whole.average.state.items())
    assert torch.equal(whole.images(["0"], 1), again.images(["0"], 1))
    assert not torch.equal(whole.images(["0"], 1), whole.images(["0"], 2))


def test_a_state_of_other_options_or_processes_is_refused() -> None:
    state = small().state_dict()
    with pytest.raises(CarvError, match="is of the proposal 'uniform' and this one is 'adaptive'"):
        small(proposal="adaptive").load_state_dict(state)
    with pytest.raises(CarvError, match="the checkpoint is of 2 processes and this is 1"):
        small().load_state_dict({**state, "ranks": state["ranks"] * 2})
    with pytest.raises(CarvError, match="does not fit these options"):
        small().load_state_dict({**state, "generator": {}})


def test_previews_come_from_the_average() -> None:
    distillation = small(ema=0.5)
    start = {k: v.clone() for k, v in distillation.average.state.items()}
    distillation.train_step()
    for name, value in distillation.generator.state_dict().items():
        expected = start[name] + 0.9 * (value - start[name])  # (1 + 0)/10
        torch.testing.assert_close(distillation.average.state[name], expected)
    assert torch.equal(distillation.averaged().unet.A, distillation.average.state["unet.A"])
    nfe = distillation.meter.nfe
    images = distillation.images(["0", "0"], 0)
    assert not torch.equal(images[0], images[1])  # each has noise of its own
    assert distillation.meter.nfe == nfe


def test_bf16_computes_in_bf16_and_keeps_float32_weights() -> None:
    dtypes = []

    class Watched(LinearUNet):
        def forward(self, z_t: Tensor, t: Tensor, encoder_hidden_states: Tensor, return_dict: bool = True) -> Any:
            dtypes.append((z_t.flatten(1) @ self.A).dtype)
            return super().forward(z_t, t, encoder_hidden_states, return_dict)

    norms = {}
    for precision in ("float32", "bf16"):
        dtypes.clear()
        distillation = small(precision=precision, batch_size=16)
        distillation.generator.unet = Watched()
        z, _, _ = distillation.backward()
        assert dtypes == [torch.bfloat16 if precision == "bf16" else torch.float32]
        assert z.dtype == torch.float32
        norms[precision] = float(distillation.generator.unet.b.grad.norm())
        assert all(p.dtype == torch.float32 for p in distillation.generator.parameters())
    assert norms["bf16"] == pytest.approx(norms["float32"], rel=0.1)
    with pytest.raises(CarvError, match="fp16, which needs CUDA"):
        small(precision="fp16")


@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="a scaler for the CPU is since torch 2.3")
def test_a_scaled_gradient_makes_the_same_step_and_an_infinite_one_none() -> None:
    nets = [nn.Linear(2, 1, bias=False) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    plain, scaled = (Updates(n, 0.1, (0.9, 0.99), 1.0, Ranks(), s) for n, s in zip(nets, (False, True)))
    x = torch.tensor([[3.0, -4.0]])
    for net, updates in zip(nets, (plain, scaled)):
        updates.scaled(net(x).sum()).backward()
    assert plain.apply() == pytest.approx(5.0)
    assert scaled.apply() == pytest.approx(5.0)
    torch.testing.assert_close(nets[0].weight, nets[1].weight)
    before, scale = nets[1].weight.detach().clone(), scaled.scale
    scaled.zero_grad()
    scaled.scaled((nets[1](x) * float("inf")).sum()).backward()
    assert scaled.apply() != scaled.apply()  # NaN
    assert torch.equal(before, nets[1].weight)
    assert scaled.scale < scale
    again = Updates(nets[1], 0.1, (0.9, 0.99), 1.0, Ranks(), True)
    again.load_state_dict(scaled.state_dict())
    assert (again.scale, again.skipped) == (scaled.scale, 2)


def test_clipping_is_of_the_whole_gradients_norm() -> None:
    net = nn.Linear(2, 1, bias=False)
    updates = Updates(net, 0.1, (0.9, 0.99), 1.0, Ranks())
    net(torch.tensor([[3.0, -4.0]])).sum().backward()
    assert updates.apply() == pytest.approx(5.0)
    torch.testing.assert_close(net.weight.grad, torch.tensor([[0.6, -0.8]]))


def test_gradients_that_are_not_finite_are_left_out_and_then_reported() -> None:
    distillation = small(fake_updates=1)
    distillation.train_step()
    with torch.no_grad():
        distillation.generator.unet.b.fill_(float("nan"))
    before = weights(distillation)
    assert distillation.train_step()["skipped"] == 1.0
    for a, b in zip(before, weights(distillation)):
        torch.testing.assert_close(a, b, equal_nan=True)
    for _ in range(18):
        distillation.train_step()
    with pytest.raises(CarvError, match="not been finite for 20 updates"):
        distillation.train_step()


def test_a_skipped_update_leaves_the_average() -> None:
    distillation = small(fake_updates=1)
    distillation.train_step()  # the weights are away from their average
    average = {k: v.clone() for k, v in distillation.average.state.items()}
    distillation.teacher.eps_hat = lambda z_t, t, text: torch.full_like(z_t, float("nan"))
    assert distillation.train_step()["skipped"] == 1.0
    assert not torch.equal(average["unet.b"], distillation.generator.unet.b)
    assert all(torch.equal(v, average[k]) for k, v in distillation.average.state.items())


def test_every_random_number_comes_from_the_stream_of_its_name() -> None:
    distillation = small(fake_updates=1)

    def moved(work: Callable[[], Any]) -> set[str]:
        before = {name: g.get_state() for name, g in distillation.generators.items()}
        work()
        return {name for name, g in distillation.generators.items() if not torch.equal(g.get_state(), before[name])}

    assert moved(distillation.backward) == {"noise", "prompts", "draws"}
    z, text = distillation.generate(2)
    assert moved(lambda: distillation._train_fake(z.detach(), text)) == {"fake_draws"}
    assert moved(lambda: distillation.images(["0"], 0)) == set()


def test_each_network_has_the_rates_of_its_options() -> None:
    distillation = small(lr=1e-3, fake_lr=3e-3, betas=(0.5, 0.9))
    both = distillation.generator_updates, distillation.fake_updates
    groups = [updates.optimizer.param_groups[0] for updates in both]
    assert [(group["lr"], group["betas"]) for group in groups] == [(1e-3, (0.5, 0.9)), (3e-3, (0.5, 0.9))]


def test_a_gradient_of_zero_moves_no_weight() -> None:
    net = nn.Linear(2, 1)
    before = [p.detach().clone() for p in net.parameters()]
    assert Updates(net, 0.1, (0.9, 0.99), 1.0, Ranks()).apply() == 0.0
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before))


def test_a_fake_batch_with_a_part_missing_is_skipped() -> None:
    distillation = small(fake_updates=1, batch_size=2)
    gradients, before = distillation.fake_training.gradients, weights(distillation)[3:]

    def part_missing(*given: Any) -> Any:
        actual = gradients(*given)
        actual.finite[0] = False
        return actual

    distillation.fake_training.gradients = part_missing  # type: ignore[method-assign]
    figures = distillation.train_step()
    assert figures["skipped"] == 1.0
    assert figures["grad_norm_fake"] != figures["grad_norm_fake"]  # NaN
    assert all(torch.equal(a, b) for a, b in zip(weights(distillation)[3:], before))


def test_draws_of_the_options_are_the_estimators() -> None:
    options = DistillOptions(num_draws=6, proposal="adaptive", stratify="global", antithetic=True, max_batch=7)
    assert options.estimator(1000, 1, 2) == EstimatorOptions(
        num_draws=6, proposal="adaptive", stratify="global", antithetic=True, max_batch=7, weighting="uniform",
        min_step=20, max_step=980, rank=1, world_size=2,
    )  # fmt: skip
    distillation = small(objective="kl", guidance_scale=5.0)
    assert isinstance(distillation.matching, DistributionMatching)
    assert (distillation.matching.objective, distillation.matching.guidance_scale) == (OBJECTIVES["kl"], 5.0)
    assert isinstance(distillation.matching.estimator.draw(torch.zeros(1, *SHAPE)), Draws)


def test_what_the_options_say_of_weight_and_of_pairs_is_so() -> None:
    for objective, uniform in (("dmd", True), ("kl", False)):
        proposal = small(proposal="weight", objective=objective).matching.estimator.proposal
        q = proposal.q
        assert (float(q.max() / q.min()) < 1.001) == uniform
    for fake_draws, paired in ((2, True), (3, False)):
        distillation = small(antithetic=True, fake_draws=fake_draws)
        draws = distillation.fake_training.draw(torch.zeros(2, *SHAPE), distillation.generators["fake_draws"])
        assert torch.equal(draws.eps[:, 0], -draws.eps[:, 1]) == paired


def test_the_gradient_is_averaged_over_the_processes() -> None:
    class Halving(Ranks):
        def average(self, gradients: Any) -> None:
            for g in gradients:
                g.div_(2)

    net = nn.Linear(2, 1, bias=False)
    updates = Updates(net, 0.1, (0.9, 0.99), 10.0, Halving())
    net(torch.tensor([[3.0, -4.0]])).sum().backward()
    assert updates.apply() == pytest.approx(2.5)


def test_a_rank_takes_its_own_part_of_the_state_and_leaves_the_rest_of_it_alone() -> None:
    class Second(Ranks):
        rank, world_size = 1, 2

        def gather(self, value: Any) -> list[Any]:
            return [value, value]

    state, other = (small(Second(), seed=seed).state_dict() for seed in (0, 1))
    state["ranks"][1] = other["ranks"][0]
    again = small(Second(), seed=2)
    again.load_state_dict(state)
    saved = again.state_dict()["ranks"][0]["generators"]
    assert all(torch.equal(g, other["ranks"][0]["generators"][name]) for name, g in saved.items())
    before = {k: v.clone() for k, v in state["average"].items()}
    again.train_step()
    assert all(torch.equal(v, state["average"][k]) for k, v in before.items())
    shared = [x.state_dict()["shared_generator"] for x in (again.matching.estimator, again.fake_training.estimator)]
    assert not torch.equal(*shared)  # the strata of the two scores' draws are dealt out apart
