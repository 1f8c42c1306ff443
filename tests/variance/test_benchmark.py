"""A scene's variances against theory: one Gaussian, for which the residual is linear in the latents and the noise."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from variance_scene import setting, small_trainer

from carv_3d.core.proposals import make_proposal
from carv_3d.core.variance import flat_gradient
from carv_3d.generate.trainer import TextTo3D
from carv_3d.variance.benchmark import STEPS, Batch, VarianceBenchmark
from carv_3d.variance.methods import BASELINE

R = 3
EXACT = [setting(R, 4, name) for name in ("uniform", "strat", "antithetic", "is")]
WIDE, NARROW = range(200, 840), range(500, 508)  # timesteps, in four equal strata
Law = tuple[Tensor, Tensor, Tensor]


def exact_trainer(timesteps: range) -> TextTo3D:
    ends = {"min": timesteps[0], "max": timesteps[-1]}
    return small_trainer(*(f"system.guidance.{k}_step_percent={t / 1000}" for k, t in ends.items()), components=1)


def residual_law(trainer: TextTo3D) -> Law:
    """a(t), b(t) of f = a (z - mu) + b eps, and q(t) of the weight proposal, at the timesteps of the range."""
    schedule, options = trainer.teacher.schedule, trainer.guidance.options
    low, high = options.timestep_range(1000, 0)
    t, table = torch.arange(low, high + 1), options.weights(schedule)
    alpha, sigma, w = schedule.alpha(t).double(), schedule.sigma(t).double(), table[t].double()
    v = (alpha * 0.4) ** 2 + sigma**2
    q = make_proposal("weight", schedule, table, low, high).q.double()
    return w * sigma * alpha / v, -w * (alpha * 0.4) ** 2 / v, q


def exact_v_in(benchmark: VarianceBenchmark, step: int) -> dict[str, float]:
    """V_in of EXACT on the renders of a step: of one draw, Var a(t) |J^T (z - mu)|^2 + E b(t)^2 |J|_F^2 for each."""
    trainer = benchmark.trainer
    out, _ = trainer.upstream(data=benchmark._cameras(EXACT[0], step))
    latents = benchmark._latents(out.comp_rgb, 0)
    z = latents.permute(0, 3, 1, 2)
    g = torch.Generator().manual_seed(step)

    def square(v: Tensor) -> float:
        """The sum over renders of |J^T v|^2: v is put into one render after the other."""
        one_each = torch.eye(R).view(R, R, 1, 1, 1) * v
        return sum(float(flat_gradient(z, benchmark.parameters, u).double().square().sum()) for u in one_each) / R**2

    away = square(z.detach() - trainer.teacher.means)
    frobenius = sum(square(torch.randn(z.shape, generator=g)) for _ in range(2)) / 2  # E |J^T noise|^2 = |J|_F^2
    a, b, q = residual_law(trainer)
    p = 1 / len(a)
    within = a.view(4, -1).var(1, unbiased=False).mean()
    weighted = (q * (p / q * a) ** 2).sum() - (p * a).sum() ** 2
    noise = b.square().mean()
    fields = {
        "uniform": (a.var(unbiased=False) * away + noise * frobenius) / 4,
        "strat": (within * away + noise * frobenius) / 4,
        "antithetic": a.var(unbiased=False) * away / 2,  # two pairs, in which the noise cancels
        "is": (weighted * away + (q * (p / q * b) ** 2).sum() * frobenius) / 4,
    }
    return {f"{R},4,{name}": float(x) for name, x in fields.items()}


@pytest.fixture(scope="module")
def measured() -> tuple[VarianceBenchmark, list[Batch]]:
    """Batches of EXACT, without the seconds."""
    benchmark = VarianceBenchmark(exact_trainer(WIDE), EXACT)
    benchmark._seconds = lambda s: {}  # type: ignore[method-assign]
    return benchmark, [benchmark.batch(i) for i in range(10)]


def test_v_in_is_what_theory_says_of_each_method(measured: tuple[VarianceBenchmark, list[Batch]]) -> None:
    benchmark, batches = measured
    exact = [exact_v_in(benchmark, step) for step in range(len(batches) * STEPS)]
    for s in EXACT:
        v_in = torch.tensor([b.v_in[s.key] for b in batches], dtype=torch.float64)
        expected, error = sum(e[s.key] for e in exact) / len(exact), float(v_in.std()) / len(v_in) ** 0.5
        assert abs(float(v_in.mean()) - expected) < 4 * error, s.key
        assert error < 0.2 * expected, s.key


def test_v_in_is_what_theory_says_to_a_tenth() -> None:
    """Of few timesteps, where it is the noise's alone and a sample of it varies little."""
    benchmark = VarianceBenchmark(exact_trainer(NARROW), EXACT[:1])
    benchmark._seconds = lambda s: {}  # type: ignore[method-assign]
    v_in = [benchmark.batch(i).v_in[EXACT[0].key] for i in range(12)]
    exact = [exact_v_in(benchmark, step)[EXACT[0].key] for step in range(12 * STEPS)]
    assert sum(v_in) / 12 == pytest.approx(sum(exact) / len(exact), rel=0.1)


def test_s_out2_is_the_variance_of_the_mean_gradient_over_renders(
    measured: tuple[VarianceBenchmark, list[Batch]],
) -> None:
    benchmark, batches = measured
    trainer = benchmark.trainer
    a, _, _ = residual_law(trainer)
    means = []
    for step in range(1000, 1150):
        out, _ = trainer.upstream(data=benchmark._cameras(EXACT[0], step))
        z = benchmark._latents(out.comp_rgb, 0).permute(0, 3, 1, 2)
        means.append(flat_gradient(z, benchmark.parameters, a.mean() * (z.detach() - trainer.teacher.means) / R))
    exact = float(torch.stack(means).double().var(0).sum())
    s_out2 = torch.tensor([b.s_out2[f"{R},0,0"] for b in batches], dtype=torch.float64)
    error = float(s_out2.std()) / len(s_out2) ** 0.5
    assert abs(float(s_out2.mean()) - exact) < 4 * error
    assert error < 0.2 * exact


def test_the_gradients_are_those_of_a_step_of_the_run() -> None:
    """On one render, the mean over many draws of a step's own gradient is that of the benchmark's A and B."""
    trainer = small_trainer("system.guidance.num_draws=64", "data.batch_size=2", components=1)
    s = setting(2, 64, "strat")
    benchmark = VarianceBenchmark(trainer, [s])
    pairs: dict[str, Any] = {s.upstream: []}
    from carv_3d.variance.benchmark import _Samples

    benchmark._step(0, [s], _Samples({s.key: []}, pairs))
    own = []
    for _ in range(8):
        data = benchmark._cameras(s, 0)
        loss = trainer.forward(data=data)[1].loss_sds
        own.append(flat_gradient(loss, benchmark.parameters))
    run_gradients, benchmark_gradients = torch.stack(own).mean(0), torch.stack(pairs[s.upstream][0]).mean(0)
    assert float((run_gradients - benchmark_gradients).norm()) < 0.2 * float(run_gradients.norm())


def test_a_batch_is_its_number_and_the_trainer_stays() -> None:
    trainer = small_trainer()
    trainer.step = 5
    before = {k: v.clone() for k, v in trainer.field.state_dict().items()}
    config, guidance = trainer.config, trainer.guidance
    states = {name: g.get_state() for name, g in trainer.generators.items()}
    benchmark = VarianceBenchmark(trainer, [BASELINE, setting(1, 2, "adaptive")])
    a, again, other = (benchmark.batch(i) for i in (3, 3, 4))
    assert (a.v_in, a.s_out2, a.norms) == (again.v_in, again.s_out2, again.norms)
    assert a.v_in != other.v_in
    assert len(a.norms) == 2 * STEPS
    assert trainer.config is config
    assert trainer.guidance is guidance
    assert all(torch.equal(g.get_state(), states[name]) for name, g in trainer.generators.items())
    assert all(torch.equal(v, before[k]) for k, v in trainer.field.state_dict().items())
    assert all(p.grad is None for p in benchmark.parameters)


def test_the_trainer_is_put_back_where_a_batch_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = small_trainer()
    benchmark = VarianceBenchmark(trainer, [BASELINE])
    states = {name: g.get_state() for name, g in trainer.generators.items()}
    config, guidance = trainer.config, trainer.guidance
    monkeypatch.setattr(trainer, "backward", lambda *_: (_ for _ in ()).throw(RuntimeError("no memory")))
    with pytest.raises(RuntimeError, match="no memory"):
        benchmark.batch(0)
    assert (trainer.config, trainer.guidance) == (config, guidance)
    assert all(torch.equal(g.get_state(), states[name]) for name, g in trainer.generators.items())


@pytest.mark.parametrize("name", ["adaptive+strat", "control", "vae", "cameras+global", "is+strat+antithetic"])
def test_every_word_can_be_measured(name: str) -> None:
    settings = [BASELINE, setting(2, 2, name)]
    batch = VarianceBenchmark(small_trainer(), settings).batch(0)
    assert batch.v_in["2,2," + name] > 0
    assert set(batch.s_out2) == {s.upstream for s in settings}
    assert batch.seconds["2,2," + name]["step"] >= batch.seconds["2,2," + name]["render"] > 0
    assert batch.seconds["all"]["step"] > sum(batch.seconds[s.key]["step"] for s in settings)


def test_a_method_has_its_own_guidance_and_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = small_trainer()
    settings = [setting(2, 4, "is+global+control"), setting(3, 2, "cameras+vae+antithetic")]
    recorded: list[Any] = []
    upstream = trainer.upstream
    monkeypatch.setattr(trainer, "upstream", lambda R=None, data=None: recorded.append(data) or upstream(R, data))
    benchmark = VarianceBenchmark(trainer, settings)
    recorded.clear()
    benchmark.batch(0)
    by_step = [(data.batch_size, data.camera_sampling) for data in recorded]
    assert by_step[:4] == [(2, "random"), (3, "low_discrepancy")] * 2
    assert by_step[-2:] == [(2, "random"), (3, "low_discrepancy")]  # the steps that are timed
    names = ("num_draws", "proposal", "stratify", "antithetic", "control_variate", "vae_sample")
    passed = [tuple(getattr(benchmark.guidances[s.key].options, name) for name in names) for s in settings]
    assert passed == [(4, "weight", "global", False, True, "sample"), (2, "uniform", "none", True, False, "draw")]


def test_settings_of_one_upstream_sample_share_their_renders() -> None:
    names = ("uniform", "is+strat", "vae", "cameras")
    upstream = {name: setting(2, 4, name).upstream for name in names}
    assert upstream["uniform"] == upstream["is+strat"] == setting(2, 8, "antithetic").upstream == "2,0,0"
    assert len({*upstream.values(), setting(1, 4, "uniform").upstream}) == 4


def test_steps_and_seeds_have_renders_and_draws_of_their_own() -> None:
    s, trainer = setting(2, 1, "uniform"), small_trainer()
    renders, seeds = [], set()
    for seed in (0, 1):
        benchmark = VarianceBenchmark(trainer, [s, BASELINE], seed)
        benchmark._step, benchmark._seconds = lambda *_: None, lambda _: {}  # type: ignore[method-assign]
        for number in (0, 1):
            renders.append(trainer.upstream(data=benchmark._cameras(s, number))[0].comp_rgb.detach())
            with contextlib.suppress(TypeError):  # no step was measured
                benchmark.batch(number)
            seeds |= {guidance.generator.initial_seed() for guidance in benchmark.guidances.values()}
    assert len(seeds) == 2 * 2 * len({s.key, BASELINE.key})
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(renders, 2))


def test_a_step_is_timed_with_the_methods_own_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, settings = small_trainer(), [BASELINE, setting(1, 4, "is")]
    benchmark, calls = VarianceBenchmark(trainer, settings), []
    monkeypatch.setattr(trainer, "backward", lambda guidance=None, data=None: calls.append((guidance, data)))
    for s in settings:
        assert benchmark._seconds(s)["step"] >= 0
    assert [guidance for guidance, _ in calls] == [benchmark.guidances[s.key] for s in settings]
    assert [data.batch_size for _, data in calls] == [2, 1]


@pytest.mark.parametrize("name", ["adaptive+strat", "control+strat"])
def test_what_is_learnt_while_measuring_is_taken_back(name: str) -> None:
    """A batch is the same whether others were measured before it or not, and something was learnt before all."""
    settings = [BASELINE, setting(1, 2, name)]
    first, second = (VarianceBenchmark(small_trainer(), settings) for _ in range(2))
    for i in range(2):
        first.batch(i)
    a, b = first.batch(2), second.batch(2)
    assert (a.v_in, a.s_out2) == (b.v_in, b.s_out2)
    estimator = second.guidances["1,2," + name].estimator
    learner: Any = estimator.proposal if estimator.control is None else estimator.control
    learnt = [x for x in learner.state_dict().values() if isinstance(x, Tensor)]
    assert len(learnt) == 2
    assert all(x.count_nonzero() > 0 for x in learnt)


def test_a_run_by_the_clock_is_measured_where_its_schedules_are() -> None:
    """Its timesteps fall from 900 to 100 over 20 steps; at three quarters of its seconds it has made one step."""
    trainer = small_trainer("system.guidance.max_step_percent=[0.9,0.1,20]")
    trainer.step, trainer.progress = 1, 0.75
    top = max(t for t, _ in VarianceBenchmark(trainer, [BASELINE]).batch(0).norms)
    assert top <= trainer.guidance.options.timestep_range(1000, 15)[1] == 299
    trainer.progress = None
    assert max(t for t, _ in VarianceBenchmark(trainer, [BASELINE]).batch(0).norms) > 299


def test_the_norms_are_of_single_draws_of_the_first_render() -> None:
    """|J^T f|^2 is in the mean the square of the mean and the variance of one draw, at timesteps spread evenly."""
    trainer = exact_trainer(NARROW)
    benchmark = VarianceBenchmark(trainer, [setting(1, 4, "uniform")])
    a, b, _ = residual_law(trainer)
    exact, measured, times = 0.0, 0.0, []
    for step in range(60):
        out, cond = trainer.upstream(data=benchmark._cameras(setting(1, 4, "uniform"), step))
        latents = benchmark._latents(out.comp_rgb, 0)
        norms = benchmark._norms(step, latents, cond)
        times += [t for t, _ in norms]
        measured += sum(square for _, square in norms) / 2
        z = latents.permute(0, 3, 1, 2)
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(step))
        for v in (a.square().mean().sqrt() * (z.detach() - trainer.teacher.means), b.square().mean().sqrt() * noise):
            exact += float(flat_gradient(z, benchmark.parameters, v).double().square().sum())
    assert measured == pytest.approx(exact, rel=0.15)
    assert torch.tensor(times).sub(500).bincount(minlength=8).tolist() == pytest.approx([15] * 8, abs=2)
