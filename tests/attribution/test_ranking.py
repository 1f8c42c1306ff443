"""What a ranking is worth, against hand computation, noise alone and known true scores."""

from __future__ import annotations

import math

import pytest
import torch

from carv_3d.attribution.ranking import Ranking, chance, rank_query, savage, top_down_correlation, top_probabilities
from carv_3d.attribution.scores import Scores, bilinear


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_savage_scores_by_hand() -> None:
    assert savage(torch.tensor([3.0, 1.0, 2.0])).tolist() == pytest.approx([1 + 1 / 2 + 1 / 3, 1 / 3, 1 / 2 + 1 / 3])


def test_agreement_counts_at_the_top() -> None:
    values = torch.arange(100.0)
    assert top_down_correlation(values, values**3) == pytest.approx(1.0)
    top, bottom = values.clone(), values.clone()
    top[:90] = values[:90].flip(0)  # agrees on the ten that lead
    bottom[10:] = values[10:].flip(0)  # and on the ten that trail
    assert top_down_correlation(values, top) > 0.3
    assert top_down_correlation(values, bottom) < -0.3


@pytest.mark.parametrize("n", [12, 400])
def test_chance_is_as_frequent_as_it_says(n: int, generator: torch.Generator) -> None:
    pairs = [torch.randn(2, n, generator=generator) for _ in range(400)]
    small = torch.tensor([chance(a, b, top_down_correlation(a, b)) for a, b in pairs]) < 0.1
    share = float(small.float().mean())
    assert abs(share - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 400)
    a = torch.randn(n, generator=generator)
    assert chance(a, a, 1.0) < 0.001


def features(n: int, signal: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A query (1, 4, 8) and items (n, 2, 8) whose draws' noise has the standard deviation 1."""
    q, f = (signal * torch.randn(m, 1, 8, generator=generator) for m in (1, n))
    noise = torch.randn(1, 4, 8, generator=generator), torch.randn(n, 2, 8, generator=generator)
    return q + noise[0], f + noise[1]


def test_noise_is_not_ranked_and_what_is_there_is(generator: torch.Generator) -> None:
    for signal, expected in ((0.0, range(3)), (2.0, range(29, 31))):
        ranked = 0
        for _ in range(30):
            q, f = features(300, signal, generator)
            ranking = rank_query(bilinear, q, f, bilinear(q, f), 10)
            ranked += ranking.differs_from_chance
        assert ranked in expected
    q, f = features(300, 2.0, generator)
    alone = rank_query(bilinear, q, f[:, :1], bilinear(q, f[:, :1]), 10)
    assert (alone.differs_from_chance, alone.p_value) == (False, 1.0)
    assert "not in two halves" in alone.words()


def test_probabilities_of_the_top_are_calibrated(generator: torch.Generator) -> None:
    said, true = [], []
    for seed in range(40):
        truth = torch.randn(1, 500, generator=generator)
        scores = Scores(truth + torch.randn(1, 500, generator=generator), torch.ones(1, 500))
        probabilities = top_probabilities(scores, 25, seed=seed)
        assert float(probabilities.sum()) == pytest.approx(25)
        top = torch.zeros(500, dtype=torch.bool)
        top[truth[0].topk(25).indices] = True
        said.append(probabilities)
        true.append(top)
    p, hit = torch.cat(said), torch.cat(true).double()
    for low, high in ((0.0, 0.02), (0.1, 0.3), (0.3, 0.6), (0.6, 1.0)):
        part = (p >= low) & (p < high)
        error = float((p[part] * (1 - p[part])).sum().sqrt()) / int(part.sum())
        assert abs(float(hit[part].mean() - p[part].mean())) < 4 * error


def test_without_evidence_every_item_has_the_probability_of_chance() -> None:
    values = torch.randn(1, 50, generator=torch.Generator().manual_seed(1))
    for errors in (torch.full((1, 50), 2.0), torch.full((1, 50), float("nan"))):
        assert top_probabilities(Scores(values, errors), 5).tolist() == [0.1] * 50
    assert top_probabilities(Scores(values, torch.ones(1, 50)), 50).tolist() == [1.0] * 50


def test_the_sentence_says_what_the_test_gave() -> None:
    p = torch.zeros(3)
    assert "differ from chance" in Ranking(0.5, 0.001, p, 1).words()
    assert "are not distinguishable from chance" in Ranking(0.1, 0.2, p, 1).words()
