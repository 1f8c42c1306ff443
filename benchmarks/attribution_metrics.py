"""How good scores are, against models that were retrained and against many draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

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


def shares_among(labels: Sequence[Any], expected: Any, top: Sequence[int]) -> tuple[float, float]:
    """(the share of the `top` items with the expected label, the share among all: what chance gives)."""
    among = sum(labels[i] == expected for i in top) / max(1, len(top))
    return among, sum(label == expected for label in labels) / max(1, len(labels))
