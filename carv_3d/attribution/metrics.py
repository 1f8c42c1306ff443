"""How good scores are: against models that were retrained, against many draws, and per evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from carv_3d.core.accounting import Interval, total_variance
from carv_3d.errors import CarvError


def rank(x: Tensor) -> Tensor:
    """Ranks along the last axis from 0, ties sharing their mean."""
    from scipy.stats import rankdata

    return torch.from_numpy(rankdata(x.double().numpy(), axis=-1)) - 1


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation along the last axis: (..., N), (..., N) -> (...); NaN where all values of a side are equal."""
    x, y = rank(a), rank(b)
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    return (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()


def linear_datamodelling_score(scores: Tensor, subsets: Tensor, outcomes: Tensor) -> Tensor:
    """(Q,) rank correlation over subsets between what the scores add up to and what retrained models did.

    scores: (Q, N), higher for items that lower the query's loss. subsets: (M, N) bool, what each model was trained
    on. outcomes: (M, Q), each model's loss on each query; lower is better, so its sign is turned.
    The same as `dattri.metric.lds` up to that sign; written out since the metric is three lines and dattri is heavy.
    """
    if subsets.shape != (len(outcomes), scores.shape[1]) or outcomes.shape[1] != len(scores):
        raise CarvError(
            f"scores {tuple(scores.shape)}, subsets {tuple(subsets.shape)} and outcomes {tuple(outcomes.shape)} do not "
            "fit: they need (Q, N), (M, N) and (M, Q)."
        )
    predicted = scores.double() @ subsets.double().T
    return spearman(predicted, -outcomes.double().T)


def mean_interval(x: Tensor, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """The mean of (N,) with its bootstrap interval over the N."""
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(len(x), (resamples, len(x)), generator=generator)
    means = x.double()[picked].mean(1)
    ends = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64))
    return Interval(float(x.double().mean()), float(ends[0]), float(ends[1]))


def variance_of_features(repeats: Tensor) -> float:
    """Mean over items of tr Cov of a feature: (M, N, d), M independent repeats for each of N items."""
    return sum(total_variance(repeats[:, i]) for i in range(repeats.shape[1])) / repeats.shape[1]


def shares_among(labels: Sequence[Any], expected: Any, top: Sequence[int]) -> tuple[float, float]:
    """(the share of the `top` items with the expected label, the share among all: what chance gives)."""
    among = sum(labels[i] == expected for i in top) / max(1, len(top))
    return among, sum(label == expected for label in labels) / max(1, len(labels))


def jackknife_ratio(numerator: Tensor, denominator: Tensor, level_z: float = 1.96) -> Interval:
    """mean(numerator) / mean(denominator) of (N,) each, with an interval by the jackknife over N."""
    n = len(numerator)
    a, b = numerator.double(), denominator.double()
    value = float(a.sum() / b.sum())
    left_out = (a.sum() - a) / (b.sum() - b)
    error = float(((left_out - left_out.mean()).square().sum() * (n - 1) / n).sqrt())
    return Interval(value, value - level_z * error, value + level_z * error)
