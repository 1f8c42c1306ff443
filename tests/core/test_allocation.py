"""The best of a measured grid of (R, K)."""

from __future__ import annotations

import pytest

from carv_3d.core.allocation import Measurement, best_measured, best_within, neyman
from carv_3d.errors import CarvError


def test_measured() -> None:
    grid = [
        Measurement(2, 1, variance=10.0, seconds=1.0),
        Measurement(1, 4, variance=4.0, seconds=1.5),
        Measurement(1, 8, variance=3.0, seconds=2.0),
        Measurement(1, 16, variance=2.9, seconds=4.0),
    ]
    assert best_measured(grid) == grid[1]  # 6.0 as K = 8, for fewer draws
    assert best_measured(iter(grid[2:])).draws == 8
    assert best_within(grid, 1.7) == grid[1]
    assert best_within(grid, 3.0) == grid[2]
    assert best_within(grid, 0.5) == grid[0]  # none keeps to it: the quickest


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: best_measured([]), "no allocation"),
        (lambda: best_within([], 1.0), "no allocation"),
        (lambda: best_measured([Measurement(1, 1, 1.0, 0.0)]), "cannot be"),
    ],
)
def test_mistakes_are_named(call: object, said: str) -> None:
    with pytest.raises(CarvError, match=said):
        call()  # type: ignore[operator]


def variance(deviations: list[float], counts: list[int]) -> float:
    return sum(s**2 / n for s, n in zip(deviations, counts))


def test_draws_go_by_deviations_and_no_other_way_has_less_variance() -> None:
    assert neyman([1, 2, 3], 60) == [10, 20, 30]
    assert neyman([1, 2, 3], 60, unit=20) == [20, 20, 20]
    assert neyman([0, 0, 0], 12, unit=2) == [4, 4, 4]
    assert neyman([1, 1e6], 10, unit=2) == [2, 8]  # a unit at least
    assert neyman([0.0, 1.0, 1.0], 6) == [1, 3, 2]
    deviations, total = [0.3, 1.1, 2.7, 0.9], 21
    counts = neyman(deviations, total)
    assert sum(counts) == total
    every = [(a, b, c, total - a - b - c) for a in range(1, 19) for b in range(1, 20 - a) for c in range(1, 21 - a - b)]
    assert variance(deviations, counts) <= 1.01 * min(variance(deviations, list(n)) for n in every)
    assert variance(deviations, counts) == pytest.approx(sum(deviations) ** 2 / total, rel=0.02)


@pytest.mark.parametrize(
    ("deviations", "total", "said"),
    [
        ([1.0, -1.0], 4, "below 0 or not finite"),
        ([1.0, float("nan")], 4, "below 0 or not finite"),
        ([1.0, 1.0], 7, "7 draws do not divide among 2 items, in units of 2"),
        ([1.0, 1.0, 1.0], 4, "each needs one unit"),
        ([], 4, "among 0 items"),
    ],
)
def test_draws_that_cannot_be_shared_out_are_named(deviations: list[float], total: int, said: str) -> None:
    with pytest.raises(CarvError, match=said):
        neyman(deviations, total, unit=2)
