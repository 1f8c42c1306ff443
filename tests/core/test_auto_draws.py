"""K by measurement on the exact Gaussian teacher: as good as the best fixed K, unbiased, lagged, resumed alike."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch
from exact import guided, sds_gradient
from torch import Tensor

from carv_3d.core.allocation import Measurement
from carv_3d.core.auto_draws import (
    BURST,
    FIRST_STEP,
    GRID,
    LEAST_GAP,
    MAX_RENDERS,
    SHARE,
    AutoDraws,
)
from carv_3d.core.bursts import STRATA, difference, leaves
from carv_3d.core.costs import CostMeter
from carv_3d.core.estimator import CarvEstimator, Estimate, EstimatorOptions
from carv_3d.core.step_times import Timings, on_line
from carv_3d.teachers.gaussian import GaussianTeacher

SHAPE, D = (1, 4, 4), 16
MEANS = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
TEACHER = GaussianTeacher(MEANS, std=0.4)
COND, UNCOND = TEACHER.text_embeddings(["0"]), TEACHER.text_embeddings([""])
LOW, HIGH, SCALE = 20, 980, 4.0


class SimulatedMeter(CostMeter):
    """A clock that stands still unless it is moved."""

    time = 0.0

    def now(self) -> float:
        return self.time


class Loop:
    """A scene of D numbers seen by cameras that turn and stretch it: z_r = A_r theta."""

    def __init__(
        self, c_up: float, c_den: float, spread: float, seed: int = 0, batched: float = 0.0, **options: Any
    ) -> None:
        """spread: of the cameras, which is what makes upstream variance. batched: seconds of a batch, however small."""
        self.meter = SimulatedMeter()
        o = EstimatorOptions(**{"min_step": LOW, "max_step": HIGH, "max_batch": 10**6, **options})
        self.estimator = CarvEstimator(TEACHER.schedule, o, meter=self.meter)
        self.auto = AutoDraws(self.estimator, seed)
        self.theta = torch.linspace(-1, 1, D, dtype=torch.float64).requires_grad_()
        self.generator = torch.Generator().manual_seed(seed)
        self.c_up, self.c_den, self.spread, self.batched = c_up, c_den, spread, batched

    def eps_hat(self, z_t: Tensor, t: Tensor) -> Tensor:
        n = len(z_t)
        self.meter.time += self.batched + self.c_den * n
        return guided(TEACHER, z_t, t, COND.expand(n, 1, 3), UNCOND.expand(n, 1, 3), SCALE)

    def render(self, R: int) -> Tensor:
        return (self.cameras(R) @ self.theta).view(R, *SHAPE)

    def cameras(self, n: int) -> Tensor:
        turned = torch.randn(n, D, D, generator=self.generator, dtype=torch.float64) / D**0.5
        return torch.eye(D).double() + self.spread * turned

    def step(self, R: int = 1) -> tuple[Estimate, Tensor]:
        """An estimate, and the gradient of the scene."""
        self.meter.time += self.c_up * R
        z = self.render(R)
        draws = self.auto.plan(z, self.generator)
        estimate = self.estimator.estimate(z, self.eps_hat, None, self.generator, draws=draws)
        self.auto.learn(z, estimate)
        (g,) = torch.autograd.grad(estimate.loss, self.theta)
        return estimate, g

    def fixed(self, K: int, n: int) -> Tensor:
        """n gradients of steps with one render and K draws: (n, D)."""
        A = self.cameras(n)
        z = (A @ self.theta.detach()).view(n, *SHAPE)
        grad = self.estimator.estimate(z, self.eps_hat, None, self.generator, num_draws=K).grad.flatten(1)
        return torch.einsum("nij,ni->nj", A, grad)

    def cost(self, K: int) -> float:
        return self.c_up + self.batched + self.c_den * K


CASES = [  # what a render costs in draws, the cameras' spread, and the design
    ({"c_up": 10.0, "c_den": 1.0, "spread": 0.1}, {"proposal": "weight"}),  # upstream expensive, little of the variance
    ({"c_up": 0.1, "c_den": 1.0, "spread": 0.3}, {"proposal": "uniform", "stratify": "none"}),  # renders almost free
    ({"c_up": 10.0, "c_den": 1.0, "spread": 1.0}, {"proposal": "uniform", "stratify": "none"}),
    ({"c_up": 3.0, "c_den": 0.2, "spread": 0.3, "batched": 4.0}, {"proposal": "uniform", "antithetic": True}),
]


@pytest.mark.parametrize(("regime", "options"), CASES)
def test_the_chosen_K_is_within_a_twentieth_of_the_best_fixed_one(regime: dict[str, float], options: Any) -> None:
    loop = Loop(**regime, **options)
    for _ in range(400):
        loop.step()
    work = {K: float(loop.fixed(K, 3000).var(0).sum()) * loop.cost(K) for K in loop.auto.grid}
    best = min(work.values())
    assert work[loop.auto.num_draws] <= 1.05 * best, (loop.auto.num_draws, work)
    assert max(work.values()) > 1.5 * best  # it matters which
    for K in loop.auto.grid:
        assert loop.auto.seconds(K) == pytest.approx(loop.cost(K))


@pytest.mark.parametrize(("regime", "options"), CASES)
def test_R_and_K_of_a_given_time_per_step(regime: dict[str, float], options: Any) -> None:
    loop = Loop(**regime, **options)
    given = loop.auto.step_seconds = 3.3 * loop.cost(4)
    assert loop.auto.renders is None
    for _ in range(400):
        loop.step(loop.auto.renders or 1)
    variances = {K: float(loop.fixed(K, 3000).var(0).sum()) for K in loop.auto.grid}

    def seconds(R: int, K: int) -> float:
        return loop.batched + R * (loop.c_up + loop.c_den * K)

    allowed = [(R, K) for K in loop.auto.grid for R in range(1, MAX_RENDERS + 1) if seconds(R, K) <= given]
    best = min(variances[K] / R for R, K in allowed)
    R, K = loop.auto.renders or 1, loop.auto.num_draws
    assert R > 1
    assert seconds(R, K) <= 1.01 * given
    assert variances[K] / R <= 1.05 * best, (R, K, best)
    assert loop.auto.scalars["R_auto"] == R


def test_seconds_between_and_below_what_was_measured() -> None:
    measured: Timings = {8: deque([0.10]), 32: deque([0.60]), 40: deque([0.50])}
    fitted = {n: on_line(measured, n) for n in (1, 4, 8, 16, 32, 40, 48)}
    expected = {1: 0.1 / 8, 4: 0.05, 8: 0.1, 16: 0.1 + 0.5 / 3, 32: 0.6, 40: 0.5, 48: 0.6}
    assert fitted == pytest.approx(expected)  # in proportion below, the line between, what was measured itself
    assert on_line({4: deque([0.2])}, 1) == pytest.approx(0.05)
    affine: Timings = {2: deque([1.2]), 4: deque([1.4])}
    assert on_line(affine, 1) == pytest.approx(1.1)


@pytest.mark.parametrize("power", [1.5, 0.5])
def test_costs_that_are_no_line_end_no_run(power: float) -> None:
    class Bent(Loop):
        def eps_hat(self, z_t: Tensor, t: Tensor) -> Tensor:
            self.meter.time += self.c_den * (len(z_t) ** power - len(z_t))
            return super().eps_hat(z_t, t)

        def step(self, R: int = 1) -> tuple[Estimate, Tensor]:
            self.meter.time += self.c_up * (R**power - R)
            return super().step(R)

    for c_up in (0.3, 1.0, 3.0):
        loop = Bent(c_up, 1.0, 0.3, proposal="weight")
        loop.auto.step_seconds = 20.0
        for _ in range(120):
            loop.step(loop.auto.renders or 4)
        R, K = loop.auto.renders, loop.auto.num_draws
        assert R is not None
        assert (c_up * R**power + (R * K) ** power) <= 1.1 * 20.0


def test_a_time_that_no_step_keeps_to_takes_the_quickest() -> None:
    loop = Loop(10.0, 1.0, 0.3, proposal="weight")
    loop.auto.step_seconds = 2.0
    for _ in range(40):
        loop.step(loop.auto.renders or 3)
    assert (loop.auto.renders, loop.auto.num_draws) == (1, 1)


def test_unbiased_while_K_is_sought() -> None:
    cameras = torch.stack([torch.eye(D).double(), torch.eye(D).double().flip(0) * 0.5])

    class TwoCameras(Loop):
        def cameras(self, n: int) -> Tensor:
            return cameras[torch.randint(2, (n,), generator=self.generator)]

    means, counts = [], set()
    for seed in range(30):
        loop = TwoCameras(3.0, 1.0, 0.0, seed, proposal="weight")
        steps = [loop.step() for _ in range(30)]
        means.append(torch.stack([g for _, g in steps]).mean(0))
        counts |= {estimate.scalars["K"] for estimate, _ in steps}
    z = (cameras @ loop.theta.detach()).view(2, *SHAPE)
    exact = sds_gradient(TEACHER, z, COND.expand(2, 1, 3), UNCOND.expand(2, 1, 3), SCALE, "sds", LOW, HIGH)
    expected = torch.einsum("nij,ni->j", cameras, exact.flatten(1)) / 2
    gradients = torch.stack(means)
    error = gradients.std(0) / len(gradients) ** 0.5
    assert float(((gradients.mean(0) - expected) / error).abs().max()) < 4
    assert float(error.norm() / expected.norm()) < 0.1  # a bias of a tenth would show
    assert len(counts) > 2  # K changed, and measured steps are among them


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_a_difference_is_worth_the_variance_in_that_many_strata(k: int) -> None:
    S, R, D2, calls = 8, 20, 3, 300
    g = torch.Generator().manual_seed(k)
    mean = torch.arange(S * D2, dtype=torch.float64).view(S, D2).sin() * 3
    noise = torch.arange(1.0, S + 1).double() / 4  # the standard deviation in each stratum
    squares = []
    for _ in range(calls):
        x = mean + noise[:, None] * torch.randn(R, 2, S, D2, generator=g, dtype=torch.float64)
        squares.append(R * difference(x, k, g).square().sum())
    coarse = mean.unflatten(0, (k, S // k))
    in_stratum = coarse.var(1, correction=0).sum(1) + D2 * noise.square().view(k, -1).mean(1)
    expected = float(in_stratum.sum()) / k**2
    values = torch.stack(squares)
    assert abs(float(values.mean()) - expected) < 4 * float(values.std()) / calls**0.5
    assert float(values.std()) / calls**0.5 < 0.1 * expected


@pytest.mark.parametrize(("stop", "seconds"), [(8, None), (8, 30.0), (50, 30.0)])  # 8: within the first burst
def test_a_resumed_loop_equals_one_that_was_not_stopped(tmp_path: Any, stop: int, seconds: float | None) -> None:
    from carv_3d.runs.checkpoint import load_checkpoint, save_checkpoint

    whole, first, second = (Loop(3.0, 1.0, 0.3, proposal="weight") for _ in range(3))
    for loop in (whole, first, second):
        loop.auto.step_seconds = seconds
    rest = [(whole.step(whole.auto.renders or 1), whole.auto.num_draws) for _ in range(70)]
    for _ in range(stop):
        first.step(first.auto.renders or 1)
    assert bool(first.auto.left) == (stop == 8)
    save_checkpoint(tmp_path / "c", {"auto": first.auto.state_dict(), "generator": first.generator.get_state()})
    state = load_checkpoint(tmp_path / "c")[0]
    second.auto.load_state_dict(state["auto"])
    second.generator.set_state(state["generator"])
    for (_, g), K in rest[stop:]:
        assert torch.equal(second.step(second.auto.renders or 1)[1], g)
        assert second.auto.num_draws == K
    assert len({K for _, K in rest}) > 1
    assert second.auto.renders == whole.auto.renders
    assert (second.auto.renders is None) == (seconds is None)


def test_K_is_chosen_before_the_draws_that_it_is_used_on_and_measuring_is_rare() -> None:
    loop = Loop(0.3, 1.0, 0.3, proposal="weight")
    used = []
    for _ in range(12):
        before = loop.auto.num_draws
        estimate, _ = loop.step()
        used.append((int(estimate.scalars["K"]), before))
    measured = [i for i, (K, _) in enumerate(used) if K == 2 * STRATA]
    assert measured == list(range(FIRST_STEP, FIRST_STEP + BURST))
    assert all(before == K for i, (K, before) in enumerate(used) if i not in measured)
    assert [before for _, before in used[: FIRST_STEP + BURST]] == [4] * 10
    assert used[-1][0] == loop.auto.num_draws < 4  # draws are expensive here
    gap = loop.auto.next_burst - (FIRST_STEP + BURST)
    assert gap > LEAST_GAP
    extra = BURST * (loop.cost(2 * STRATA) - loop.cost(4))
    assert extra / (gap * loop.cost(loop.auto.num_draws)) <= SHARE


def test_what_passes_between_two_steps_is_no_part_of_either_where_it_is_skipped() -> None:
    plain, other = Loop(0.3, 1.0, 0.3, proposal="weight"), Loop(0.3, 1.0, 0.3, proposal="weight")
    for _ in range(FIRST_STEP + BURST + 1):
        plain.step()
        other.step()
        other.meter.time += 7.0  # another run's turn
        other.auto.skip(7.0)
    assert other.auto.seconds(4) == pytest.approx(plain.auto.seconds(4)) == pytest.approx(plain.cost(4))
    assert other.auto.num_draws == plain.auto.num_draws


def test_leaves_are_the_parameters() -> None:
    a, b, other = (torch.ones(2, requires_grad=True) for _ in range(3))
    fixed = torch.ones(2)
    out = (a * fixed).exp() + (b + a) * b.detach()
    assert {id(x) for x in leaves(out)} == {id(a), id(b)}
    assert [id(x) for x in leaves(other)] == [id(other)]
    pairs = Loop(1.0, 1.0, 0.3, antithetic=True).auto
    assert pairs.grid == [K for K in GRID if K > 1]
    assert pairs.variances.levels == (1, 2, 4, STRATA)
    assert Loop(1.0, 1.0, 0.3, stratify="none").auto.variances.levels == (STRATA,)


@pytest.mark.parametrize(
    ("gain", "step_seconds", "K"), [(0.01, None, 4), (0.03, None, 8), (0.01, 2.0, 4), (0.03, 2.0, 8)]
)
def test_a_new_K_must_be_clearly_better(gain: float, step_seconds: float | None, K: int) -> None:
    auto = Loop(1.0, 1.0, 0.3).auto
    auto.step_seconds = step_seconds
    variances = dict.fromkeys(auto.grid, 2.0) | {4: 1.0, 8: 1.0 - gain}
    auto._measurement = lambda R, K: Measurement(R, K, variances[K], 1.0)  # type: ignore[method-assign]
    auto._choose()
    assert auto.num_draws == auto.estimator.num_draws == K


def test_a_K_that_takes_too_long_goes_at_once() -> None:
    auto = Loop(1.0, 1.0, 0.3).auto
    auto.step_seconds = 3.0
    auto._measurement = lambda R, K: Measurement(R, K, 1 + 0.01 / K, float(K))  # type: ignore[method-assign]
    auto._choose()
    assert auto.num_draws == 2


def test_a_stop_within_a_burst_loses_no_difference_of_gradients() -> None:
    whole, first, second = (Loop(3.0, 1.0, 0.3, proposal="weight") for _ in range(3))
    for _ in range(FIRST_STEP + BURST - 1):
        whole.step()
        first.step()
    second.auto.load_state_dict(first.auto.state_dict())
    assert len(second.auto.variances._outs) == BURST - 2
    second.generator.set_state(first.generator.get_state())
    whole.step()
    second.step()
    assert second.auto.variances.out2 == whole.auto.variances.out2 != 0
    assert second.auto.variances.in2 == whole.auto.variances.in2


def test_a_state_of_the_last_version_is_read() -> None:
    generator = torch.Generator().manual_seed(9).get_state()
    old = {
        "num_draws": 8, "renders": [None, 2], "when": [31, 52, 2], "means": [1, 0.5, 4.0, 3.0, 2.0, 1.0],
        "burst": [[[4.0, 3.0, 2.0, 1.0]], [0.25]], "last": torch.ones(2, 3), "others": {1: [0.5], 2: [1.0]},
        "extra": [0.3], "denoise": {"8": [0.2]}, "generator": generator,
    }  # fmt: skip
    auto = Loop(1.0, 1.0, 0.3).auto
    auto.load_state_dict(old)
    assert (auto.num_draws, auto.renders, auto.calls, auto.next_burst, auto.left) == (8, None, 31, 52, 2)
    assert auto.variance(2) == (3.0 + 0.5) / 2
    assert auto.variance(16) == (1.0 / 2 + 0.5) / 2  # beyond the finest strata as 1 / K
    assert auto.seconds(4) == 1.0 + 0.2
    state = auto.state_dict()
    assert state["variances"]["outs"] == [0.25]
    assert torch.equal(state["variances"]["generator"], generator)
    again = Loop(1.0, 1.0, 0.3).auto
    again.load_state_dict(state)
    assert state["times"] == {"others": {1: [0.5], 2: [1.0]}, "denoise": {8: [0.2]}, "extra": [0.3]}
    assert again.state_dict()["times"] == state["times"]
    auto.load_state_dict({**old, "others": [0.5], "renders": [3, 2]})  # older still
    assert not auto.times


def test_the_meter_may_be_shared_and_set_back() -> None:
    plain, other = Loop(0.3, 1.0, 0.3, proposal="weight"), Loop(0.3, 1.0, 0.3, proposal="weight")
    for _ in range(5):
        plain.step()
        other.step()
        other.meter.seconds = {"denoise": 0.0}  # as hosts do at each step
    assert other.auto.seconds(4) == pytest.approx(plain.auto.seconds(4)) == pytest.approx(plain.cost(4))
    for loop in (plain, other):  # what is denoising, and what is not
        times = loop.auto.state_dict()["times"]
        assert times["denoise"] == {4: pytest.approx([4.0] * 5)}
        assert times["others"] == {1: pytest.approx([0.3] * 4)}
    assert plain.meter.seconds["denoise"] == pytest.approx(20.0)  # auto leaves it alone
    plain.step(3)
    assert plain.auto.state_dict()["times"]["denoise"][12] == [pytest.approx(12.0)]  # by all draws of a step


def test_the_variances_of_renders_and_of_draws_are_separated() -> None:
    def parts(spread: float, R: int) -> tuple[float, float]:
        loop = Loop(1.0, 1.0, spread, proposal="weight")
        variances = loop.auto.variances
        while variances.bursts < 10:
            loop.auto.next_burst = 0  # one burst after the other
            loop.step(R)
        return variances.out2, variances.in2[-1]

    out2, in2 = parts(0.0, 1)  # cameras that stand still are no source of variance
    assert abs(out2) < 0.5 * in2
    single, triple = parts(0.5, 1), parts(0.5, 3)  # of one render, however many a step has
    for a, b in zip(single, triple):
        assert a > 0
        assert 0.5 < b / a < 2.0
