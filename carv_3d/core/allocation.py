"""How many draws per render: from variances and costs that were measured, never by habit.

Var(g) cost(g) = (s_out^2 + s_in^2 / K) (c_up + K c_den), the same for every R: variance and cost trade one
for one in R, so only K has a best value (arXiv 2605.21489, "compute allocation"). A K chosen from the very
draws that it is then used on biases the estimate: choose from earlier steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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


def neyman(deviations: Sequence[float], total: int, unit: int = 1) -> list[int]:
    """Draws for each of N items in proportion to its standard deviation, a `unit` at least.

    Neyman (1934): at sum n_i = total that is the least sum s_i^2 / n_i, (sum s_i)^2 / total where no item is at the
    least. Numbers are rounded to units by largest remainders.

    Args:
        deviations: s_i >= 0; where all are 0 the draws are equal.
        total: of all items, a multiple of `unit` and N units at least.
        unit: draws that belong together.

    Returns:
        n_i, multiples of `unit` that add up to `total`.

    Raises:
        CarvError: deviations that are not finite or below 0, or a total that does not fit.
    """
    s = [float(x) for x in deviations]
    if not all(math.isfinite(x) and x >= 0 for x in s):
        raise CarvError("draws cannot be shared out by deviations that are below 0 or not finite.")
    units, rest = divmod(total, unit)
    if not s or rest or units < len(s):
        raise CarvError(f"{total} draws do not divide among {len(s)} items, in units of {unit}: each needs one unit.")
    shares, free, left = [1.0] * len(s), set(range(len(s))), float(units)
    while free:  # those below a unit get it, and the others share the rest
        whole = sum(s[i] for i in free)
        ideal = {i: left * s[i] / whole if whole > 0 else left / len(free) for i in free}
        small = {i for i, share in ideal.items() if share < 1}
        if not small:
            shares = [ideal.get(i, share) for i, share in enumerate(shares)]
            break
        free -= small
        left -= len(small)
    counts = [int(share) for share in shares]
    order = sorted(range(len(s)), key=lambda i: counts[i] - shares[i])
    for i in order[: units - sum(counts)]:
        counts[i] += 1
    return [unit * count for count in counts]
