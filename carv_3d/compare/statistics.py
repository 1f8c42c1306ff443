"""Mean curves over seeds and prompts, and their bands, by a bootstrap in two levels: prompts, then seeds.

All methods are resampled alike: what a resample says of two methods it says of the same prompts and seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from carv_3d.compare.records import Array, RunRecord
from carv_3d.report.charts import smooth
from carv_3d.stats.bootstrap import MIN_RUNS, RESAMPLES, SEED, ends

POINTS = 100  # of a curve
DENSE = 60  # a series of more points is smoothed before the mean over runs, over a twentieth of it


@dataclass
class Curve:
    """A method's mean over its runs at `x`, and the ends of its band (NaN below `MIN_RUNS` independent ones)."""

    method: str
    x: Array
    mean: Array
    low: Array
    high: Array
    runs: int
    independent: int


def independent(runs: Sequence[RunRecord]) -> int:
    """How many figures `Bootstrap` draws first: prompts where there are several, else runs."""
    prompts = {run.prompt for run in runs}
    return len(prompts) if len(prompts) > 1 else len(runs)


class Bootstrap:
    """How often each (prompt, seed) is drawn in each of B resamples, the same for every method."""

    def __init__(self, runs: Sequence[RunRecord]) -> None:
        rng = np.random.default_rng(SEED)
        seeds: dict[str, list[int]] = {}
        for run in runs:
            if run.seed not in seeds.setdefault(run.prompt, []):
                seeds[run.prompt].append(run.seed)
        self.keys = [(prompt, seed) for prompt in seeds for seed in sorted(seeds[prompt])]
        drawn = rng.multinomial(len(seeds), [1 / len(seeds)] * len(seeds), size=RESAMPLES)
        parts = []
        for p, own in enumerate(seeds.values()):  # each time a prompt is drawn, as many seeds as it has
            parts.append(rng.multinomial(drawn[:, p] * len(own), [1 / len(own)] * len(own)))
        self.counts = np.concatenate(parts, axis=1).astype(float)

    def weights(self, runs: Sequence[RunRecord]) -> Array:
        """(B, runs): what each run weighs in the mean of each resample; a row of zeros where none was drawn."""
        index = {key: i for i, key in enumerate(self.keys)}
        picked = self.counts[:, [index[run.prompt, run.seed] for run in runs]]
        total = picked.sum(1, keepdims=True)
        return np.divide(picked, total, out=np.zeros_like(picked), where=total > 0)

    def means(self, runs: Sequence[RunRecord], values: Array) -> Array:
        """(B, G): the mean of `values` (runs, G) in each resample, NaN where none of the runs was drawn."""
        weights = self.weights(runs)
        means = weights @ values
        means[weights.sum(1) == 0] = np.nan
        return np.asarray(means)

    def interval(self, runs: Sequence[RunRecord], values: Array) -> tuple[Array, Array]:
        """The ends (G,) of the mean of `values` (runs, G); NaN below `MIN_RUNS` independent ones."""
        if independent(runs) < MIN_RUNS:
            unknown = np.full(values.shape[1:], np.nan)
            return unknown, unknown
        low, high = ends(self.means(runs, values))  # resamples that drew none of the runs are left out
        return low, high


def _all_series(runs: Sequence[RunRecord], metric: str, axis: str) -> list[tuple[Array, Array]]:
    """Every run's curve; none at all where one of them has no such."""
    series = [run.series(metric, axis) for run in runs]
    return series if all(len(x) for x, _ in series) else []


def paced(runs: Sequence[RunRecord], metric: str, axis: str) -> tuple[Array, Array] | None:
    """Every run's curve at the same shares of its own length, from its first point to its last.

    The mean over the runs ends at the mean length with the mean final value, however the runs differ in length (as in
    steps where all have the same seconds).

    Returns:
        x (runs, G) and y (runs, G); None where a run has no such curve.
    """
    series = _all_series(runs, metric, axis)
    if not series:
        return None
    grids = [np.linspace(x[0], x[-1], POINTS) for x, _ in series]
    return np.array(grids), np.array([np.interp(grid, x, y) for grid, (x, y) in zip(grids, series)])


def sampled(runs: Sequence[RunRecord], metric: str, axis: str) -> tuple[Array, Array] | None:
    """Every run's curve on one grid, from where the last of them begins to where the first ends.

    Returns:
        x (G,) and y (runs, G); None where a run has no such curve, or they do not overlap.
    """
    series = _all_series(runs, metric, axis)
    if not series:
        return None
    begin, end = max(x[0] for x, _ in series), min(x[-1] for x, _ in series)
    if begin > end:
        return None
    grid = np.linspace(begin, end, POINTS if end > begin else 1)
    rows = []
    for x, y in series:
        if len(x) > DENSE:
            y = np.array(smooth(y.tolist(), max(1, len(y) // 20)))
        rows.append(np.interp(grid, x, y))
    return grid, np.array(rows)


def mean_curve(runs: Sequence[RunRecord], metric: str, axis: str, bootstrap: Bootstrap) -> Curve | None:
    """The mean curve of one method's runs, with its band; None where they have none."""
    curves = sampled(runs, metric, axis)
    if curves is None:
        return None
    x, y = curves
    low, high = bootstrap.interval(runs, y)
    return Curve(runs[0].method, x, y.mean(0), low, high, len(runs), independent(runs))
