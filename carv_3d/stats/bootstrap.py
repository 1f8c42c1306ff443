"""Percentile bootstrap intervals: one number of resamples, one seed, one rule for when an interval is shown.

`scipy.stats.bootstrap` would replace `picks` alone: figures here share their resamples, weigh pairs of different
items, or are censored, and `ends` is needed for all of these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from carv_3d.core.variance import ecm, total_variance
from carv_3d.errors import CarvError

RESAMPLES, SEED, LEVEL = 2000, 0, 0.95
MIN_SAMPLES = 8  # independent batches, pairs or items below which no interval is shown
MIN_RUNS = 5  # the same of runs, for each side of a comparison
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure and the ends of its 95 % interval, NaN where too little was measured for one."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    def text(self, spec: str = ".2f") -> str:
        """The figure with its interval, "1.68 [1.52, 1.80]", or alone."""
        ends = f" [{self.low:{spec}}, {self.high:{spec}}]" if self.known else ""
        return f"{self.value:{spec}}{ends}"


def picks(n: int, seed: int = SEED) -> Tensor:
    """(1 + RESAMPLES, n) indices with replacement; the first row is the sample as it is."""
    drawn = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(seed))
    return torch.cat([torch.arange(n)[None], drawn])


def counts(n: int, seed: int = SEED) -> Tensor:
    """(1 + RESAMPLES, n) float64: how often `picks` has each item."""
    picked = picks(n, seed)
    return torch.zeros(picked.shape, dtype=torch.float64).scatter_add_(1, picked, torch.ones_like(picked).double())


def ends(resampled: Any) -> tuple[Any, Any]:
    """The ends of the central `LEVEL` of (B, ...) resampled figures; rows that are not finite are left out."""
    values = np.asarray(resampled, np.float64)
    values = values[np.isfinite(values).reshape(len(values), -1).all(1)]
    if not len(values):
        return (np.full(values.shape[1:], np.nan),) * 2
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def interval(values: Tensor, n: int, least: int = MIN_SAMPLES) -> Interval:
    """The figure `values[0]` with the interval of the others, its resamples; none where n is below `least`."""
    if n < least:
        return Interval(float(values[0]))
    low, high = ends(values[1:].cpu())
    return Interval(float(values[0]), float(low), float(high))


def mean_interval(x: Tensor) -> Interval:
    """The mean of (N,) independent values."""
    return interval(x.double().cpu()[picks(len(x))].mean(1), len(x))


def ratio_of_means(numerator: Tensor, denominator: Tensor) -> Interval:
    """The ratio of the means of two values (N,), (N,) of N items, which are resampled with both of their values.

    Raises:
        CarvError: shapes that do not fit, fewer than two items, or a denominator of mean zero.
    """
    if numerator.dim() != 1 or numerator.shape != denominator.shape or len(numerator) < 2:
        raise CarvError(
            f"a ratio of {tuple(numerator.shape)} and {tuple(denominator.shape)} values: both need the same items."
        )
    if float(denominator.double().mean()) == 0:
        raise CarvError("the ratio is to a mean of zero: nothing can be set against it.")
    times = counts(len(numerator)).to(numerator.device)
    return interval((times @ numerator.double()) / (times @ denominator.double()), len(numerator))


def ecm_interval(base: Tensor, cost_base: float, method: Tensor, cost: float) -> Interval:
    """ECM of gradients (N, ...) over those of a baseline (M, ...), all independent; costs are of a step, as given."""
    value = ecm(total_variance(base), cost_base, total_variance(method), cost)
    resampled = _variances(base, SEED) * cost_base / (_variances(method, SEED + 1) * cost)
    return interval(torch.cat([torch.tensor([value]).double(), resampled[1:]]), min(len(base), len(method)))


def _variances(samples: Tensor, seed: int) -> Tensor:
    """(1 + RESAMPLES,) unbiased tr Cov of each resample, from the Gram matrix of the centred samples alone."""
    x = samples.detach().double().flatten(1)
    n = len(x)
    x = x - x.mean(0)
    gram = (x @ x.T).cpu()
    times = counts(n, seed)
    squares = times @ gram.diagonal() - ((times @ gram) * times).sum(1) / n
    return squares / (n - 1) * n / (n - 1)  # a resample repeats samples, which costs it a factor 1 - 1/n
