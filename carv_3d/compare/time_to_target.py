"""What a method needs to reach the baseline's final score, as a ratio to what the baseline itself needed.

The target is the mean of the baseline's final scores. Each side's time is where its mean curve first comes to the
target, on any axis (steps, seconds, NFE, renders). A baseline that had been there before its end is given the earlier
point. Runs of a side that differ in length are averaged at equal shares of their own. So the target is the same on
every axis, and the mean curve ends at the mean length.

A curve that never comes to the target is censored: all that is known is that the ratio is above what was tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from carv_3d.compare.records import Array, RunRecord
from carv_3d.compare.statistics import Bootstrap, independent, paced
from carv_3d.stats.bootstrap import LEVEL, MIN_RUNS


@dataclass(frozen=True)
class TimeToTarget:
    """One ratio.

    Attributes:
        prompt: "" for the mean over all of them.
        baseline_at: where the baseline reached the target, in units of the axis; inf where it never did.
        method_at: where the method did.
        ratio: inf where the method never did: then it is above `tried`. NaN where the baseline did not improve at all.
        low: of the bootstrap's interval; inf where that end is censored, NaN where `independent` is below `MIN_RUNS`.
        high: as `low`.
        tried: the mean length of the method's runs over `baseline_at`.
        reached: the share of resamples in which the method reached the target.
        runs: of the method.
        baseline_runs: of the baseline.
        independent: prompts where there are several, else runs; of the side that has fewer.
    """

    metric: str
    axis: str
    method: str
    prompt: str
    target: float
    baseline_at: float
    method_at: float
    ratio: float
    low: float
    high: float
    tried: float
    reached: float
    runs: int
    baseline_runs: int
    independent: int

    def text(self) -> str:
        """As `ratio_text`."""
        return ratio_text(self.ratio, self.low, self.high, self.tried)


def ratio_text(ratio: float, low: float, high: float, tried: float) -> str:
    """The ratio in words: "0.62 [0.50, 0.80]", "not reached (above 1.00)", "—" where it is NaN.

    Arguments as of `TimeToTarget`.
    """
    if math.isnan(ratio):
        return "—"
    if math.isinf(ratio):
        text = f"not reached (above {tried:.2f})"
        return text if math.isnan(low) or math.isinf(low) else f"{text} [from {low:.2f}]"
    if math.isnan(low):
        return f"{ratio:.2f}"
    end = "not reached" if math.isinf(high) else f"{high:.2f}"
    return f"{ratio:.2f} [{low:.2f}, {end}]"


def first_crossing(x: Array, y: Array, target: Array) -> Array:
    """Where each row of `y` (B, G) over `x` (B, G) first is at its target (B,), inf where it never is.

    Between grid points it is linear; a row that begins at or above its target crosses at its first x.
    """
    above = y >= target[:, None]
    ever = above.any(1)
    i = above.argmax(1)
    rows = np.arange(len(y))
    before = np.maximum(i - 1, 0)
    rise = y[rows, i] - y[rows, before]
    part = np.divide(target - y[rows, before], rise, out=np.ones_like(rise), where=rise > 0)
    at = np.where(i == 0, x[:, 0], x[rows, before] + part.clip(0, 1) * (x[rows, i] - x[rows, before]))
    return np.where(ever, at, np.inf)


def time_to_target(
    baseline: Sequence[RunRecord],
    method: Sequence[RunRecord],
    metric: str,
    axis: str,
    bootstrap: Bootstrap,
    prompt: str = "",
) -> TimeToTarget | None:
    """The ratio for one method, axis and score; None where one side has no such curve.

    Args:
        baseline: its runs.
        method: the method's.
        metric: the score, of which higher is better.
        axis: what it is read against, one of `AXES`.
        bootstrap: the resamples of all runs.
        prompt: set where both sides are runs of that prompt alone.
    """
    base, other = (paced(runs, metric, axis) for runs in (baseline, method))
    if base is None or other is None:
        return None
    (xb, yb), (xm, ym) = base, other
    target, at_b, at_m = _times(*(side.mean(0)[None] for side in (xb, yb, xm, ym)))
    ratio = _ratio(at_m, at_b)
    low = high = math.nan
    share = float(np.isfinite(at_m[0]))
    count = min(independent(baseline), independent(method))
    if count >= MIN_RUNS and not math.isnan(ratio[0]):
        pairs = ((baseline, xb), (baseline, yb), (method, xm), (method, ym))
        means = [bootstrap.means(runs, values) for runs, values in pairs]
        drawn = np.isfinite(means[1]).all(1) & np.isfinite(means[3]).all(1)
        _, rb, rm = _times(*(values[drawn] for values in means))
        # An order statistic at either end: a censored resample counts as the largest, and is never averaged. So does
        # one in which the baseline did not improve, which has no ratio: at the end that is worse for the method.
        ratios = np.sort(np.nan_to_num(_ratio(rm, rb), nan=np.inf, posinf=np.inf))
        share = float(np.isfinite(rm).mean())
        low = float(ratios[math.floor((1 - LEVEL) / 2 * (len(ratios) - 1))])
        high = float(ratios[math.ceil((1 + LEVEL) / 2 * (len(ratios) - 1))])
    tried = float(xm[:, -1].mean() / at_b[0]) if at_b[0] > 0 else math.inf
    return TimeToTarget(
        metric, axis, method[0].method, prompt, float(target[0]), float(at_b[0]), float(at_m[0]), float(ratio[0]),
        low, high, tried, share, len(method), len(baseline), count,
    )  # fmt: skip


def _times(xb: Array, yb: Array, xm: Array, ym: Array) -> tuple[Array, Array, Array]:
    """Targets and where either side reaches them, for each row."""
    target = yb[:, -1]
    return target, first_crossing(xb, yb, target), first_crossing(xm, ym, target)


def _ratio(method_at: Array, baseline_at: Array) -> Array:
    """NaN where the baseline needed nothing: it did not improve at all."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(baseline_at > 0, method_at / baseline_at, np.nan)
