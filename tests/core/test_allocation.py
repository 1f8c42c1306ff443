"""The best of a measured grid of (R, K)."""

from __future__ import annotations

import pytest

from carv_3d.core.allocation import Measurement, best_measured, best_within
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
