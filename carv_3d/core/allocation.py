"""How many draws per render: from variances and costs that were measured, never by habit.

Var(g) cost(g) = (s_out^2 + s_in^2 / K) (c_up + K c_den), the same for every R: variance and cost trade one
for one in R, so only K has a best value (arXiv 2605.21489, "compute allocation"). A K chosen from the very
draws that it is then used on biases the estimate: choose from earlier steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from carv_3d.errors import CarvError


def best_num_draws(
    c_up: float, c_den: float, s_in2: float, s_out2: float, max_draws: int = 64, even: bool = False
) -> int:
    """The K >= 1 with the least Var cost for independent draws and a cost linear in K.

    Closed form sqrt(c_up / c_den · s_in2 / s_out2), then the better whole number of its two neighbours.

    c_up: cost of one upstream sample (render, encode and their backward). c_den: cost of one draw.
    s_in2, s_out2: variance of one draw given the render, and of the conditional mean over renders. An
        estimate of s_out2 at or below 0 says that the upstream noise is too small to see: max_draws.
    max_draws: never more than this. even: only even K (antithetic pairs; s_in2 is then per draw of a pair).
    Raises CarvError for numbers that are negative or not finite.
    """
    step = 2 if even else 1
    numbers = {"c_up": c_up, "c_den": c_den, "s_in2": s_in2}
    for name, value in numbers.items():
        if not math.isfinite(value) or value < 0:
            raise CarvError(f"{name} is {value}; it must be a finite number of at least 0.")
    if not math.isfinite(s_out2):
        raise CarvError(f"s_out2 is {s_out2}; it must be finite.")
    if max_draws < step:
        raise CarvError(f"max_draws is {max_draws}; it must be at least {step}.")
    top = max_draws - max_draws % step
    if s_in2 == 0 or c_up == 0:
        return step
    if s_out2 <= 0 or c_den == 0:
        return top
    ideal = math.sqrt(c_up / c_den * s_in2 / s_out2)
    below = min(max(int(ideal / step) * step, step), top)
    return min(
        (below, min(below + step, top)),
        key=lambda k: (s_out2 + s_in2 / k) * (c_up + k * c_den),
    )


@dataclass(frozen=True)
class Measurement:
    """One allocation as measured: tr Cov of the gradient and seconds of a step, with R renders of K draws."""

    renders: int
    draws: int
    variance: float
    seconds: float

    @property
    def work(self) -> float:
        """Var · cost: the seconds that it takes to reach a variance of 1 by averaging steps."""
        return self.variance * self.seconds


def best_measured(grid: Iterable[Measurement]) -> Measurement:
    """The measured (R, K) with the least Var(K) · cost(K); of equals the one with fewer draws.

    On a GPU the cost of K draws is not linear in K, and under strata the variance is not 1/K: this asks of
    neither. Raises CarvError for an empty grid or numbers that cannot have been measured.
    """
    points = list(grid)
    if not points:
        raise CarvError("no allocation was measured: give at least one Measurement.")
    for p in points:
        if not (p.variance >= 0 and p.seconds > 0 and math.isfinite(p.work)):
            raise CarvError(f"{p} cannot be: variance must be at least 0, seconds above 0, both finite.")
    return min(points, key=lambda p: (p.work, p.draws, p.renders))


def best_within(grid: Iterable[Measurement], seconds: float) -> Measurement:
    """The (R, K) with the least variance among those whose step takes at most `seconds`, of equals the quicker one;
    the quickest where none keeps to it. Raises CarvError as `best_measured`."""
    points = list(grid)
    best_measured(points)  # refuses what cannot be
    kept = [p for p in points if p.seconds <= seconds]
    return min(kept, key=lambda p: (p.variance, p.seconds)) if kept else min(points, key=lambda p: p.seconds)
