"""`num_draws: auto`: K from the seconds and the parameter-gradient variances of the run itself.

Now and then a few steps in a row are *measured*. Such a step draws twice, independently, from S strata, and uses the
mean of all. Let x_c and x'_c be the two contributions from stratum c, and a, b = J^T mean_c x_c, J^T mean_c x'_c, with
J^T through encoder and renderer. Then, of the step's gradient,

    s_out^2 = E <a_i - a_(i+1), b_i - b_(i+1)> / 2          over measured steps in a row,
    V_in(S) = E |a - b|^2 / 2,
    V_in(k) = E |J^T d_k|^2,   d_k = 1/sqrt(2 S k) sum_c ± (x_c - x'_c')      for k < S strata, c' at random in c's.

One backward for each k, and for a and b. K is then the one of a grid with the least (s_out^2 + V_in(K)) · seconds(K)
(`core.allocation`), from the next step on. With independent cameras all three fall as 1/R, and R trades variance for
seconds one for one: it is chosen only where a step is given its seconds, as the (R, K) of least variance among those
that keep to them. (Cameras spread over the renders of a step make s_out^2 fall a little faster, which is left out.)
"""

from __future__ import annotations

import statistics
from collections import deque
from typing import Any

import torch
from torch import Tensor

from carv_3d.core.allocation import Measurement, best_measured, best_within
from carv_3d.core.costs import CostMeter
from carv_3d.core.estimator import CarvEstimator, Draws, Estimate
from carv_3d.core.reduction import per_draw

GRID = (1, 2, 4, 8, 16)  # K that may be chosen; the even ones for pairs
FIRST_K = 4  # until something is measured
MAX_RENDERS = 16  # R that may be chosen
STRATA = 8  # S above; a measured step takes 16 draws per render (32 in pairs)
LEVELS = (1, 2, 4, STRATA)
BURST = 4  # measured steps in a row: three differences of gradients
FIRST_STEP = 6  # calls before the first burst: the seconds of the first are no one's habit
SHARE = 0.04  # of the run's seconds, at most, for measuring
LEAST_GAP = 20  # steps between two bursts
HYSTERESIS = 0.02  # a new K must promise as much less Var · seconds
RECENT = 15  # steps over which seconds are a median

Timings = dict[int, deque[float]]


class AutoDraws:
    """The K of `num_draws: auto`, for one estimator on one process.

        draws, K = auto.plan(estimator, latents, generator)         # once a step
        estimate = estimator.estimate(latents, eps_hat, draws=draws, num_draws=K)
        auto.learn(latents, estimate)

    With `step_seconds` R is chosen as well, and `renders` is how many the next step should have; until something was
    measured that is None, the host's own number. The gradient is that of all leaves of the latents' graph that require
    one: a host's parameters. What is chosen is used from the next step on, so the estimate stays unbiased. Strata over
    renders are measured as strata in each. Since K follows measured seconds, two runs of one seed may differ. Seconds
    are counted from one call to the next, so whatever a host does in a step counts; what it does besides (previews,
    another run's turn) it takes out with `skip`, or the median leaves it out where it is rare.
    """

    def __init__(self, meter: CostMeter, group_size: int = 1, stratified: bool = True, seed: int = 0) -> None:
        """meter: the estimator's own, told its phase "denoise"; its clock is this one's. seed: of signs and shifts."""
        self.meter, self.group_size, self.stratified = meter, group_size, stratified
        self.grid = [K for K in GRID if K % group_size == 0]
        self.num_draws = FIRST_K
        self.step_seconds: float | None = None  # what a step may take; None leaves R to the host
        self._chosen: int | None = None  # R, of the last time that it was chosen
        self.calls, self.next_burst, self.left = 0, FIRST_STEP, 0
        self.bursts = 0  # seen so far; means over them in which the n-th counts n times: a scene changes with its age
        self.out2, self.in2 = 0.0, [0.0] * len(self._levels)  # of one render
        self._burst_in2, self._burst_out2 = self._nothing()
        self._last: Tensor | None = None  # a and b of the measured step before, (2, P)
        self._others: Timings = {}  # renders of a step -> its seconds without denoising
        self._denoise: Timings = {}  # draws of a step -> seconds of denoising them
        self._extra: deque[float] = deque(maxlen=RECENT)  # seconds of a measured step beyond a usual one's
        self._before: tuple[float, bool] | None = None  # when the last call began, and whether it was measured
        self._spent = self._last_denoise = 0.0
        self._renders = 1
        self._generator = torch.Generator().manual_seed(seed)

    def plan(
        self, estimator: CarvEstimator, latents: Tensor, generator: torch.Generator | None
    ) -> tuple[Draws | None, int]:
        """(draws of a measured step, or None; K), for latents (R, ...). Call it once at every step."""
        self._time()
        if self.left == 0 and self.calls >= self.next_burst and latents.requires_grad:
            self.left, self._last = BURST, None
            self._burst_in2, self._burst_out2 = self._nothing()
        self.calls += 1
        measured = self.left > 0
        self._before = (self.meter.now(), measured)
        self._renders = latents.shape[0]
        if not measured:
            return None, self.num_draws
        n = STRATA * self.group_size
        one, two = (estimator.draw(latents, generator, n) for _ in range(2))
        weights = None
        if one.weights is not None and two.weights is not None:
            weights = torch.cat([one.weights, two.weights], 1)
        both = Draws(torch.cat([one.t, two.t], 1), torch.cat([one.eps, two.eps], 1), weights, self.group_size)
        return both, 2 * n

    def learn(self, latents: Tensor, estimate: Estimate) -> None:
        """After the estimate and before its backward: look at a measured step, and choose after the last of a burst."""
        self._count_denoising(estimate)
        self._spent = 0.0
        if self.left == 0:
            return
        begin = self.meter.now()
        self.left -= 1
        parameters = leaves(latents)
        x = per_draw(estimate.weights, estimate.residual) * estimate.residual
        x = x.unflatten(1, (2, STRATA, self.group_size)).mean(3)  # (R, 2, S, ...)
        found = [
            _pull(latents, parameters, difference(x, k, self._generator)).double().square().sum()
            for k in self._levels[:-1]
        ]
        halves = torch.stack([_pull(latents, parameters, x[:, i].mean(1) / len(x)) for i in range(2)])
        found.append((halves[0] - halves[1]).double().square().sum() / 2)
        if self._last is not None and self._last.shape == halves.shape:
            apart = (halves - self._last.to(halves)).double()
            self._burst_out2.append(float((apart[0] * apart[1]).sum()) / 2)
        self._last = halves
        self._burst_in2.append(torch.stack(found).tolist())
        if self.left == 0:
            self._last, self.next_burst = None, self.calls + LEAST_GAP  # at least: `_time` knows better
            self._choose()
        self._spent = self.meter.now() - begin

    def skip(self, seconds: float) -> None:
        """Seconds since the last `plan` that are no part of a step."""
        if self._before is not None:
            begin, measured = self._before
            self._before = (begin + seconds, measured)

    def variance(self, K: int, R: int | None = None) -> float:
        """tr Cov of a step's gradient with K draws for each of R renders (those of the last step unless given), as
        measured so far.

        Beyond the finest strata measured it falls as 1/K, as it does without any; strata do at least as well.
        """
        k = K // self.group_size
        level = self._levels[0] if k < self._levels[0] else max(one for one in self._levels if one <= k)
        v_in = self.in2[self._levels.index(level)] * level / k
        return v_in / (R or self._renders) + self.s_out2 * self._renders / (R or self._renders)

    def seconds(self, K: int, R: int | None = None) -> float:
        """Seconds of a step with K draws for each of R renders (those of the last step unless given): measured where
        it was run, else on the line between what was."""
        R = R or self._renders
        return on_line(self._others, R) + on_line(self._denoise, K * R)

    @property
    def renders(self) -> int | None:
        """R of the next step; None where it is the host's: without `step_seconds`, and until something was measured."""
        return None if self.step_seconds is None else self._chosen

    @property
    def scalars(self) -> dict[str, float]:
        """For the log: K_auto and R_auto, what was chosen; upstream_share, of one draw's (or pair's) variance;
        seconds_auto, of measuring in this step, without its further draws."""
        out = {"K_auto": float(self.num_draws), "seconds_auto": self._spent}
        if self.renders is not None:
            out["R_auto"] = float(self.renders)
        one = self.variance(self.grid[0])
        if one > 0:
            out["upstream_share"] = self.s_out2 / one
        return out

    @property
    def s_out2(self) -> float:
        """Of the last step, not below 0."""
        return max(self.out2, 0.0) / self._renders

    @property
    def _levels(self) -> tuple[int, ...]:
        return LEVELS if self.stratified else LEVELS[-1:]  # independent groups: as 1 / k

    @staticmethod
    def _nothing() -> tuple[list[list[float]], list[float]]:
        return [], []

    def _choose(self) -> None:
        outs = torch.tensor(self._burst_out2, dtype=torch.float64)
        ins = torch.tensor(self._burst_in2, dtype=torch.float64)
        if not len(outs) or not bool(torch.isfinite(outs).all() & torch.isfinite(ins).all()):
            return
        self.bursts += 1
        part, R = 2 / (self.bursts + 1), self._renders
        self.out2 += part * (R * float(outs.mean()) - self.out2)
        self.in2 = [old + part * (R * float(new) - old) for old, new in zip(self.in2, ins.mean(0))]
        if not self._others:
            return
        now = self._measurement(R, self.num_draws)
        if self.step_seconds is None:
            best = best_measured(self._measurement(R, K) for K in self.grid)
            better = best.work < (1 - HYSTERESIS) * now.work
        else:
            every = (self._measurement(r, K) for K in self.grid for r in range(1, MAX_RENDERS + 1))
            best = best_within(every, self.step_seconds)
            better = best.variance < (1 - HYSTERESIS) * now.variance or now.seconds > self.step_seconds
        chosen = best if better else now
        self.num_draws, self._chosen = chosen.draws, chosen.renders

    def _measurement(self, R: int, K: int) -> Measurement:
        return Measurement(R, K, self.variance(K, R), self.seconds(K, R))

    def _time(self) -> None:
        """The seconds of the step before, now that the next one begins."""
        if self._before is None:
            return
        begin, measured = self._before
        took = self.meter.now() - begin
        if not measured:
            seen = self._others.setdefault(self._renders, deque(maxlen=RECENT))
            seen.append(max(took - self._last_denoise, 1e-9))
            return
        usual = self.seconds(self.num_draws) if self._others else took
        self._extra.append(max(took - usual, 0.0))
        if self.left == 0:
            due = BURST * statistics.median(self._extra) / (SHARE * usual)
            self.next_burst = self.calls + max(LEAST_GAP, int(due) + 1)

    def _count_denoising(self, estimate: Estimate) -> None:
        total = self.meter.seconds.get("denoise", 0.0)
        self._last_denoise, self.meter.seconds["denoise"] = total, 0.0
        seen = self._denoise.setdefault(estimate.t.numel(), deque(maxlen=RECENT))
        seen.append(total)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives. A step that a stop cut off is not timed."""
        return {
            "num_draws": self.num_draws,
            "renders": [self._chosen, self._renders],
            "when": [self.calls, self.next_burst, self.left],
            "means": [self.bursts, self.out2, *self.in2],
            "burst": [[list(row) for row in self._burst_in2], list(self._burst_out2)],
            "last": self._last,
            "others": {n: list(s) for n, s in self._others.items()},
            "extra": list(self._extra),
            "denoise": {n: list(s) for n, s in self._denoise.items()},
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back `state_dict`."""
        self.num_draws = int(state["num_draws"])
        self._chosen, self._renders = state.get("renders", [None, 1])  # older states have neither
        self.calls, self.next_burst, self.left = state["when"]
        self.bursts, self.out2, *self.in2 = state["means"]
        self._burst_in2, self._burst_out2 = [list(row) for row in state["burst"][0]], list(state["burst"][1])
        self._last = state["last"]  # on the CPU if need be: `learn` moves it
        others = state["others"]
        self._others = _timings(others) if isinstance(others, dict) else {}
        self._extra = deque(state["extra"], maxlen=RECENT)
        self._denoise = _timings(state["denoise"])
        self._generator.set_state(state["generator"].cpu())
        self._before = None


def difference(x: Tensor, k: int, generator: torch.Generator | None = None) -> Tensor:
    """A cotangent (R, ...) whose pullback's squared norm is, in expectation, the variance of the mean over R renders of
    k groups of draws in k strata, given the renders.

    x: (R, 2, S, ...), two independent groups of contributions, one from each of S strata; k divides S. Group c of the
    first is held against c' of the second, c' uniform on c's coarse stratum, so the two are as two independent draws
    from that; with a random sign for each, the differences' cross terms vanish in expectation.
    """
    R, _, S = x.shape[:3]
    fine = S // k
    shift = int(torch.randint(fine, (), generator=generator))
    first, second = x[:, 0].unflatten(1, (k, fine)), x[:, 1].unflatten(1, (k, fine)).roll(shift, 2)
    signs = torch.randint(2, (R, k, fine), generator=generator).to(x) * 2 - 1
    d = per_draw(signs, first) * (first - second)
    return d.sum((1, 2)) / ((2 * S * k) ** 0.5 * R)


def on_line(timings: Timings, n: int) -> float:
    """Seconds at n, from the medians at what was measured: that itself, or on the line through the neighbours, not
    falling; below all of them, and where there is one alone, not less than in proportion."""
    points = sorted((at, statistics.median(s)) for at, s in timings.items())
    if n in timings:
        return dict(points)[n]
    in_proportion = points[0][1] * n / points[0][0]
    if len(points) == 1:
        return in_proportion
    right = next((i for i, (at, _) in enumerate(points) if at >= n), len(points) - 1)
    (n0, s0), (n1, s1) = points[max(right - 1, 0)], points[max(right, 1)]
    slope = max(s1 - s0, 0.0) / (n1 - n0)
    line = s0 + slope * (n - n0)
    return max(line, in_proportion) if n < points[0][0] else line


def _timings(saved: dict[Any, list[float]]) -> Timings:
    return {int(n): deque(s, maxlen=RECENT) for n, s in saved.items() if s}


def leaves(of: Tensor) -> list[Tensor]:
    """The leaves of a tensor's graph that require a gradient, in the order in which a walk finds them."""
    found: list[Tensor] = []
    seen: set[Any] = set()
    todo: list[Any] = [of.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        todo.extend(following for following, _ in node.next_functions)
    return found if of.grad_fn is not None else [of]


def _pull(latents: Tensor, parameters: list[Tensor], cotangent: Tensor) -> Tensor:
    """J^T v: (P,), float32 at least."""
    grads = torch.autograd.grad(latents, parameters, cotangent.to(latents), retain_graph=True, allow_unused=True)
    flat = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters)]
    return torch.cat([g.reshape(-1).to(torch.promote_types(g.dtype, torch.float32)) for g in flat])
