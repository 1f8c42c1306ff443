"""What a ranking is worth: whether it differs from chance, and how probable it is that an item belongs at its top.

Two halves of the draws, items' and query's, rank the items independently. If the draws were noise alone, the two
rankings would be as unrelated as shuffled ones. Their agreement is the top-down correlation (Iman and Conover, 1987):
that of Savage scores, sum_{j = r}^{N} 1/j of rank r, which weighs the first ranks most.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from carv_3d.attribution.scores import Scores
from carv_3d.core.seeds import keyed_generator

LEVEL = 0.01  # of the test against chance
SHUFFLES = 1999  # of small sets
SMALL = 200  # items up to which the test shuffles; above, the correlation is taken as normal
SAMPLES = 400  # of all true scores at once


@dataclass(frozen=True)
class Ranking:
    """What is known of one query's scores besides them.

    Attributes:
        agreement: top-down correlation of the rankings by two independent halves of all draws; NaN if there are none.
        p_value: of an agreement as large by chance; 1 where there are no halves.
        probabilities: (N,) that an item's true score is among the `count` highest.
        count: k, the length of the top.
    """

    agreement: float
    p_value: float
    probabilities: Tensor
    count: int

    @property
    def differs_from_chance(self) -> bool:
        """Whether the ranking may be shown as one."""
        return self.p_value < LEVEL

    def words(self) -> str:
        """The test and its result, in a sentence."""
        if math.isnan(self.agreement):
            return "The draws are not in two halves, so nothing says whether the ranking differs from chance."
        finding = "differ from chance" if self.differs_from_chance else "are not distinguishable from chance"
        return (
            f"The scores {finding}: rankings by two independent halves of the draws have a top-down correlation of "
            f"{self.agreement:.2f} (p = {self.p_value:.2g}; {LEVEL} is asked for)."
        )


def rank_query(
    score: Callable[[Tensor, Any], Scores], queries: Tensor, items: Any, scores: Scores, count: int
) -> Ranking:
    """The ranking of one query.

    Args:
        score: (queries (1, H, d), items (N, G, d)) -> Scores, as the scores were made.
        queries: (1, H, d), H independent groups.
        items: (N, G, d), G independent groups, a tensor or a (memory-mapped) array.
        scores: of all groups.
        count: k.
    """
    probabilities = top_probabilities(scores, count, items.shape[1])
    H, G = queries.shape[1], items.shape[1]
    if H < 2 or G < 2:
        return Ranking(float("nan"), 1.0, probabilities, count)
    first = score(queries[:, : H // 2], items[:, : G // 2]).values[0]
    second = score(queries[:, H // 2 :], items[:, G // 2 :]).values[0]
    agreement = top_down_correlation(first, second)
    return Ranking(agreement, chance(first, second, agreement), probabilities, count)


def savage(values: Tensor) -> Tensor:
    """(N,) scores of the ranks of values (N,), N at the highest: sum_{j = r}^{N} 1/j."""
    n = len(values)
    by_rank = (1 / torch.arange(1, n + 1, dtype=torch.float64)).flip(0).cumsum(0).flip(0)
    out = torch.empty(n, dtype=torch.float64)
    out[torch.argsort(values, descending=True, stable=True)] = by_rank
    return out


def top_down_correlation(a: Tensor, b: Tensor) -> float:
    """Of two rankings of the same items by values (N,); 1 where they agree, about 0 where they are unrelated."""
    if len(a) < 2:
        return float("nan")
    return float(torch.corrcoef(torch.stack([savage(a), savage(b)]))[0, 1])


def chance(a: Tensor, b: Tensor, agreement: float) -> float:
    """The probability of an agreement as large between unrelated rankings: normal, or by shuffling a small set."""
    n = len(a)
    if n < 2:
        return 1.0
    if n > SMALL:
        return 0.5 * math.erfc(agreement * math.sqrt(n - 1) / math.sqrt(2))
    x, y, generator = savage(a), savage(b), keyed_generator(0, "chance", n)
    x, y = x - x.mean(), y - y.mean()
    shuffled = torch.stack([y[torch.randperm(n, generator=generator)] for _ in range(SHUFFLES)]) @ x
    as_large = int((shuffled >= float(x @ y) * (1 - 1e-9)).sum())
    return (as_large + 1) / (SHUFFLES + 1)


def top_probabilities(scores: Scores, count: int, groups: int = 2, seed: int = 0) -> Tensor:
    """(N,) the probability of each item that its true score is among the `count` highest.

    True scores have a normal prior of the scores' own mean, and of their variance less the mean square error. Given a
    score s with standard error e they are normal again (empirical Bayes), and are sampled.

    Args:
        scores: of one query, (1, N).
        count: k.
        groups: of an item, for the degrees of freedom of its error.
        seed: of the samples.
    """
    values, n = scores.values[0].double(), scores.values.shape[1]
    errors = scores.moderated_errors(max(1, groups - 1))[0].double()
    if count >= n:
        return torch.ones(n, dtype=torch.float64)
    if not bool(errors.isfinite().all()):
        return torch.full((n,), count / n, dtype=torch.float64)
    prior = float(values.var() - errors.square().mean())
    if prior <= 0:
        return torch.full((n,), count / n, dtype=torch.float64)
    shrunk = prior / (prior + errors.square())
    mean, spread = values.mean() + shrunk * (values - values.mean()), shrunk.sqrt() * errors
    generator, total = keyed_generator(seed, "top"), torch.zeros(n, dtype=torch.float64)
    for _ in range(SAMPLES):
        sample = mean + spread * torch.randn(n, generator=generator, dtype=torch.float64)
        total[sample.topk(count).indices] += 1
    return total / SAMPLES
