"""`num_draws: auto`: K from the seconds and the parameter-gradient variances of the run itself.

Now and then a few steps in a row are measured (`core.bursts`), and every step is timed (`core.step_times`). K is then
the one of a grid with the least (s_out^2 + V_in(K)) · seconds(K) (`core.allocation`), from the next step on. With
independent cameras both variances fall as 1/R, and R trades variance for seconds one for one: it is chosen only where a
step is given its seconds, as the (R, K) of least variance among those that keep to them. (Cameras spread over the
renders of a step make s_out^2 fall a little faster, which is left out.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from carv_3d.core.allocation import Measurement, best_measured, best_within
from carv_3d.core.bursts import STRATA, BurstVariances
from carv_3d.core.costs import CostMeter
from carv_3d.core.estimator import CarvEstimator, Draws, Estimate
from carv_3d.core.step_times import StepTimes

GRID = (1, 2, 4, 8, 16)  # K that may be chosen; the even ones for pairs
FIRST_K = 4  # until something is measured
MAX_RENDERS = 16  # R that may be chosen
BURST = 4  # measured steps in a row: three differences of gradients
FIRST_STEP = 6  # calls before the first burst: the first steps take longer than usual
SHARE = 0.04  # of the run's seconds, at most, for measuring
LEAST_GAP = 20  # steps between two bursts
HYSTERESIS = 0.02  # a new K must promise as much less Var · seconds


class AutoDraws:
    """Chooses an estimator's K as the run goes, on one process.

        auto = AutoDraws(estimator)
        draws = auto.plan(latents, generator)         # once a step
        estimate = estimator.estimate(latents, eps_hat, draws=draws)
        auto.learn(latents, estimate)

    The gradient is that of all leaves of the latents' graph that require one: a host's parameters. What is chosen is
    used from the next step on, so the estimate stays unbiased. Strata over renders are measured as strata in each.
    Since K follows measured seconds, two runs of one seed may differ.

    Attributes:
        step_seconds: what a step may take; None leaves R to the host.
    """

    def __init__(self, estimator: CarvEstimator, seed: int = 0) -> None:
        """estimator: gets a meter if it has none. seed: of signs and shifts."""
        self.estimator = estimator
        if estimator.meter is None:
            estimator.meter = CostMeter(estimator.schedule.device)
        design = estimator.design
        self.group_size = design.group_size
        self.grid = [K for K in GRID if K % self.group_size == 0]
        self.times = StepTimes(estimator.meter)
        self.variances = BurstVariances(self.group_size, design.stratify != "none", seed)
        self.step_seconds: float | None = None
        self.calls, self.next_burst = 0, FIRST_STEP
        self.left = 0  # measured steps of this burst that are to come
        self._chosen_renders: int | None = None
        self._last_renders = 1
        self._measured = False  # the last step was
        self._spent = 0.0

    @property
    def num_draws(self) -> int:
        """The estimator's K."""
        return self.estimator.num_draws

    def plan(self, latents: Tensor, generator: torch.Generator | None) -> Draws | None:
        """Call it once at every step, with its latents (R, ...): the draws of a measured step, or None."""
        usual = self.times.end(self._last_renders, self.num_draws, self._measured)
        if usual is not None and self._measured and self.left == 0:
            due = BURST * self.times.extra / (SHARE * usual)
            self.next_burst = self.calls + max(LEAST_GAP, int(due) + 1)
        if self.left == 0 and self.calls >= self.next_burst and latents.requires_grad:
            self.left = BURST
            self.variances.begin()
        self.calls += 1
        self._measured, self._last_renders = self.left > 0, latents.shape[0]
        self.times.begin()
        if not self._measured:
            return None
        first, second = (self.estimator.draw(latents, generator, STRATA * self.group_size) for _ in range(2))
        weights = None
        if first.weights is not None and second.weights is not None:
            weights = torch.cat([first.weights, second.weights], 1)
        return Draws(torch.cat([first.t, second.t], 1), torch.cat([first.eps, second.eps], 1), weights, self.group_size)

    def learn(self, latents: Tensor, estimate: Estimate) -> None:
        """After the estimate and before its backward: look at a measured step, and choose after the last of a burst."""
        self.times.denoised(estimate.t.numel())
        self._spent = 0.0
        if self.left == 0:
            return
        begin = self.times.meter.now()
        self.left -= 1
        self.variances.add(latents, estimate)
        if self.left == 0:
            self.next_burst = self.calls + LEAST_GAP  # at least: `plan` knows better
            if self.variances.end(self._last_renders) and self.times:
                self._choose()
        self._spent = self.times.meter.now() - begin

    def skip(self, seconds: float) -> None:
        """Seconds since the last `plan` that are no part of a step."""
        self.times.skip(seconds)

    def variance(self, K: int, R: int | None = None) -> float:
        """Variance of a step's gradient with K draws for each of R renders (those of the last step unless given)."""
        return (self.variances.inner(K) + self.variances.outer) / (R or self._last_renders)

    def seconds(self, K: int, R: int | None = None) -> float:
        """Seconds of a step with K draws for each of R renders (those of the last step unless given)."""
        return self.times.seconds(R or self._last_renders, K)

    @property
    def renders(self) -> int | None:
        """R of the next step; None where it is the host's: without `step_seconds`, and until something was measured."""
        return None if self.step_seconds is None else self._chosen_renders

    @property
    def scalars(self) -> dict[str, float]:
        """For the log.

        K_auto and R_auto: what was chosen. upstream_share: of the variance with one draw (or pair). seconds_auto: of
        measuring in this step, without its further draws.
        """
        out = {"K_auto": float(self.num_draws), "seconds_auto": self._spent}
        if self.renders is not None:
            out["R_auto"] = float(self.renders)
        smallest = self.variance(self.grid[0])
        if smallest > 0:
            out["upstream_share"] = self.variances.outer / self._last_renders / smallest
        return out

    def _choose(self) -> None:
        R = self._last_renders
        now = self._measurement(R, self.num_draws)
        if self.step_seconds is None:
            best = best_measured(self._measurement(R, K) for K in self.grid)
            better = best.work < (1 - HYSTERESIS) * now.work
        else:
            every = (self._measurement(r, K) for K in self.grid for r in range(1, MAX_RENDERS + 1))
            best = best_within(every, self.step_seconds)
            better = best.variance < (1 - HYSTERESIS) * now.variance or now.seconds > self.step_seconds
        chosen = best if better else now
        self.estimator.num_draws, self._chosen_renders = chosen.draws, chosen.renders

    def _measurement(self, R: int, K: int) -> Measurement:
        return Measurement(R, K, self.variance(K, R), self.seconds(K, R))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives."""
        return {
            "num_draws": self.num_draws,
            "chosen_renders": self._chosen_renders,
            "last_renders": self._last_renders,
            "calls": self.calls,
            "next_burst": self.next_burst,
            "left": self.left,
            "variances": self.variances.state_dict(),
            "times": self.times.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back `state_dict`, also that of version 0.1."""
        state = _named(state) if "when" in state else state
        self.estimator.num_draws = int(state["num_draws"])
        self._chosen_renders, self._last_renders = state["chosen_renders"], state["last_renders"]
        self.calls, self.next_burst, self.left = state["calls"], state["next_burst"], state["left"]
        self.variances.load_state_dict(state["variances"])
        self.times.load_state_dict(state["times"])


def _named(old: dict[str, Any]) -> dict[str, Any]:
    """The state of version 0.1, which had lists without names."""
    chosen, last = old.get("renders", [None, 1])
    calls, next_burst, left = old["when"]
    bursts, out2, *in2 = old["means"]
    ins, outs = old["burst"]
    others = old["others"] if isinstance(old["others"], dict) else {}
    return {
        "num_draws": old["num_draws"],
        "chosen_renders": chosen,
        "last_renders": last,
        "calls": calls,
        "next_burst": next_burst,
        "left": left,
        "variances": {"bursts": bursts, "out2": out2, "in2": in2, "outs": outs, "ins": ins}
        | {"last": old["last"], "generator": old["generator"]},
        "times": {"others": others, "denoise": old["denoise"], "extra": old["extra"]},
    }
