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

    It needs neither a cost linear in K (a GPU's is not) nor a variance that falls as 1/K (under strata it does not).

    Raises:
        CarvError: an empty grid, or numbers that cannot have been measured.
    """
    points = list(grid)
    if not points:
        raise CarvError("no allocation was measured: give at least one Measurement.")
    for p in points:
        if not (p.variance >= 0 and p.seconds > 0 and math.isfinite(p.work)):
            raise CarvError(f"{p} cannot be: variance must be at least 0, seconds above 0, both finite.")
    return min(points, key=lambda p: (p.work, p.draws, p.renders))


def best_within(grid: Iterable[Measurement], seconds: float) -> Measurement:
    """The (R, K) with the least variance among those whose step takes at most `seconds`.

    Of equals the quicker one; the quickest of all where none keeps to it.

    Args:
        grid: measured points.
        seconds: the most that a step may take.

    Raises:
        CarvError: as `best_measured`.
    """
    points = list(grid)
    best_measured(points)  # refuses what cannot be
    kept = [p for p in points if p.seconds <= seconds]
    return min(kept, key=lambda p: (p.variance, p.seconds)) if kept else min(points, key=lambda p: p.seconds)
