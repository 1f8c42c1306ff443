"""Scores against dense formulas, their errors against repeats, metrics against known values."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from attribution_metrics import (
    linear_datamodelling_score,
    rank,
    shares_among,
)
from attribution_metrics import spearman as spearman_with

from carv_3d.attribution import Scores, bilinear, choose_ridge, cosine, kernel, relatif, tracin, trak
from carv_3d.attribution.scores import mean_and_variance
from carv_3d.errors import CarvError

D = 7


def noisy(mean: torch.Tensor, groups: int, generator: torch.Generator, spread: float = 0.5) -> torch.Tensor:
    """(N, groups, D): mean (N, D) and noise of a covariance that is no multiple of the identity."""
    scale = spread * torch.linspace(0.3, 1.5, D, dtype=torch.float64)
    shape = (len(mean), groups, D)
    return mean[:, None] + scale * torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def means(generator) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.randn(3, D, generator=generator, dtype=torch.float64),
        torch.randn(20, D, generator=generator, dtype=torch.float64),
    )


def test_trak_is_the_dense_formula(means, generator) -> None:
    q, f = noisy(means[0], 4, generator), noisy(means[1], 2, generator)
    F = f.mean(1)
    gram = F.T @ F / len(F)
    inverse = torch.linalg.inv(gram + 0.1 * gram.trace() / D * torch.eye(D))
    scores = trak(q, f, 0.1)
    assert torch.allclose(scores.values, q.mean(1) @ inverse @ F.T)
    assert torch.allclose(kernel(f), gram)
    # an array of the disk gives the same
    assert torch.allclose(trak(q, f.numpy(), 0.1).values, scores.values)


def test_relatif_is_traks_score_over_the_roots_of_scores_for_oneself(means, generator) -> None:
    q, f = noisy(means[0], 3, generator), noisy(means[1], 2, generator)
    scores = relatif(q, f, 0.1)
    traks = trak(q, f, 0.1).values
    own_items = torch.stack([trak(f[i : i + 1], f, 0.1).values[0, i] for i in range(len(f))])
    gram = kernel(f)
    own_queries = torch.stack([trak(q[i : i + 1], q[i : i + 1], 0.1, gram).values[0, 0] for i in range(len(q))])
    assert torch.allclose(scores.values, traks / (own_items * own_queries[:, None]).sqrt())
    assert torch.allclose(relatif(q, f.numpy(), 0.1, gram).values, scores.values)
    with pytest.raises(CarvError, match="it must be above 0"):
        relatif(q, f, 0.0)


def test_chunks_change_nothing(means, generator, monkeypatch) -> None:
    q, f = noisy(means[0], 4, generator), noisy(means[1], 2, generator)
    whole = [trak(q, f, 0.1), cosine(q, f), kernel(f)]
    monkeypatch.setattr("carv_3d.attribution.scores.CHUNK", 3)
    parts = [trak(q, f, 0.1), cosine(q, f), kernel(f)]
    assert torch.allclose(whole[0].values, parts[0].values)
    assert torch.allclose(whole[1].errors, parts[1].errors)
    assert torch.allclose(whole[2], parts[2])


METRIC = torch.diag(torch.arange(1.0, D + 1, dtype=torch.float64))


@pytest.mark.parametrize("score", [bilinear, cosine, partial(relatif, ridge=0.1, gram=METRIC)])
def test_standard_errors_are_those_of_repeats(means, generator, score) -> None:
    repeats = [score(noisy(means[0], 6, generator, 0.3), noisy(means[1], 5, generator, 0.3)) for _ in range(200)]
    values = torch.stack([r.values for r in repeats])
    estimated = torch.stack([r.errors.square() for r in repeats]).mean(0)
    ratio = estimated / values.var(0)
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.07)  # 200 repeats, 60 scores


def test_with_one_group_of_both_there_is_no_error(means, generator) -> None:
    q, f = noisy(means[0], 1, generator), noisy(means[1], 1, generator)
    assert bilinear(q, f).errors.isnan().all()
    assert bilinear(noisy(means[0], 2, generator), f).errors.isfinite().all()


def test_the_variance_of_a_two_way_mean_by_hand() -> None:
    """Rows 2 and 6, columns 3 and 5, rest 1, -1, -1, 1: 8/2 + 2/2 - 4/(1 * 1 * 4)."""
    mean, variance = mean_and_variance(torch.tensor([[2.0, 2.0], [4.0, 8.0]]))
    assert (float(mean), float(variance)) == (4.0, 4.0)
    alone, by_column = mean_and_variance(torch.tensor([[3.0, 5.0]]))
    assert (float(alone), float(by_column)) == (4.0, 1.0)
    assert float(mean_and_variance(torch.tensor([[3.0], [5.0]]))[1]) == 1.0
    assert mean_and_variance(torch.ones(1, 1))[1].isnan()
    assert float(mean_and_variance(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))[1]) == 0.0  # below 0 otherwise


def test_moderated_errors_lean_on_the_mean_by_hand() -> None:
    scores = Scores(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))
    expected = [(8 * 0.5 / 9) ** 0.5, ((1 + 8 * 0.5) / 9) ** 0.5]
    assert scores.moderated_errors()[0].tolist() == pytest.approx(expected)
    expected = [(2 * 0.5 / 5) ** 0.5, ((3 + 2 * 0.5) / 5) ** 0.5]
    assert scores.moderated_errors(degrees=3, prior=2)[0].tolist() == pytest.approx(expected)


def test_tracin_adds_checkpoints_up(means, generator) -> None:
    steps = [(noisy(means[0], 3, generator), noisy(means[1], 2, generator), rate) for rate in (0.1, 0.3)]
    total = tracin(steps)
    parts = [bilinear(q, f) for q, f, _ in steps]
    assert torch.allclose(total.values, 0.1 * parts[0].values + 0.3 * parts[1].values)
    assert torch.allclose(total.errors, (0.01 * parts[0].errors ** 2 + 0.09 * parts[1].errors ** 2).sqrt())
    with pytest.raises(CarvError, match="one checkpoint"):
        tracin([])


def test_the_ridge_that_describes_held_out_items_is_chosen(generator) -> None:
    # 4 directions of variance 25 and 36 of 1, seen by as many items as there are directions: the plain kernel of a
    # fold has no inverse, and one that is nearly all ridge forgets the four
    scale = torch.cat([torch.full((4,), 5.0), torch.ones(36)]).double()
    f = scale * torch.randn(40, 1, 40, generator=generator, dtype=torch.float64)
    ridges = [1e-4, 1e-3, 1e-2, 1e-1, 0.3, 1.0, 10.0, 100.0]
    chosen = choose_ridge(f, ridges)
    truth = torch.diag(scale**2)

    def divergence(ridge: float) -> float:  # of Gaussians, from the true covariance to the regularized kernel of a fold
        half = f[::2].mean(1)
        gram = half.T @ half / len(half)
        regular = gram + ridge * gram.trace() / 40 * torch.eye(40)
        return float(torch.linalg.solve(regular, truth).trace() + torch.logdet(regular))

    best = min(ridges, key=divergence)
    assert abs(ridges.index(chosen) - ridges.index(best)) <= 1
    with pytest.raises(CarvError, match="needs 4 items"):
        choose_ridge(f[:3])


def test_bad_input_is_named(means, generator) -> None:
    q, f = noisy(means[0], 2, generator), noisy(means[1], 2, generator)
    with pytest.raises(CarvError, match="ridge is 0"):
        trak(q, f, 0.0)
    with pytest.raises(CarvError, match="the same d"):
        bilinear(q[..., :3], f)
    with pytest.raises(CarvError, match="not positive"):
        trak(q, f, 0.1, gram=-torch.eye(D, dtype=torch.float64))


def test_best_first(means, generator) -> None:
    scores = bilinear(noisy(means[0], 2, generator), noisy(means[1], 2, generator))
    values = scores.values[1]
    assert scores.top(1, 3) == values.argsort(descending=True)[:3].tolist()
    assert scores.top(1, 2, least=True) == values.argsort()[:2].tolist()


def test_rank_correlations_by_hand() -> None:
    assert rank(torch.tensor([3.0, 1.0, 3.0])).tolist() == [1.5, 0.0, 1.5]
    a = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert float(spearman_with(a, a**3)) == pytest.approx(1.0)
    assert float(spearman_with(a, torch.tensor([1.0, 2.0, 4.0, 3.0]))) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)


def test_linear_datamodelling_scores_by_hand() -> None:
    subsets = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1]]).bool()
    scores = torch.tensor([[3.0, 2.0, 0.5], [-1.0, 0.0, 1.0]])
    losses = 10 - subsets.double() @ scores.double().T
    assert linear_datamodelling_score(scores, subsets, losses).tolist() == pytest.approx([1.0, 1.0])
    assert linear_datamodelling_score(-scores, subsets, losses).tolist() == pytest.approx([-1.0, -1.0])
    with pytest.raises(CarvError, match="do not fit"):
        linear_datamodelling_score(scores, subsets[:, :2], losses)


def test_shares_among_the_top_and_by_chance() -> None:
    assert shares_among(["a", "b", "a", "c"], "a", [0, 1]) == (0.5, 0.5)
