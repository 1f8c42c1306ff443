"""The best K: the closed form against trying every K, and the measured grid."""

from __future__ import annotations

import pytest

from carv_3d.core.allocation import Measurement, best_measured, best_num_draws, best_within
from carv_3d.errors import CarvError


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("c_up", [0.1, 1.0, 7.0, 300.0])
@pytest.mark.parametrize("s_out2", [0.01, 0.3, 2.0, 50.0])
def test_closed_form_is_the_best_of_all(c_up: float, s_out2: float, even: bool) -> None:
    tried = range(2, 65, 2) if even else range(1, 65)
    best = min(tried, key=lambda k: (s_out2 + 1.0 / k) * (c_up + k))
    assert best_num_draws(c_up, 1.0, 1.0, s_out2, even=even) == best


def test_known_values() -> None:
    # a tenth of the cost and a tenth of the variance: sqrt(10 · 9) = 9.49, and 9 · 10 lie about it
    assert best_num_draws(c_up=10.0, c_den=1.0, s_in2=9.0, s_out2=1.0) in (9, 10)
    assert best_num_draws(c_up=1.0, c_den=1.0, s_in2=1.0, s_out2=1.0) == 1
    assert best_num_draws(c_up=1.0, c_den=0.0, s_in2=1.0, s_out2=1.0, max_draws=33) == 33  # draws are free
    assert best_num_draws(c_up=1.0, c_den=1.0, s_in2=1.0, s_out2=-0.1, max_draws=33, even=True) == 32
    assert best_num_draws(c_up=1.0, c_den=1.0, s_in2=0.0, s_out2=0.0) == 1  # no noise to average
    assert best_num_draws(c_up=0.0, c_den=1.0, s_in2=1.0, s_out2=0.0, even=True) == 2  # renders are free


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
        (lambda: best_num_draws(-1.0, 1.0, 1.0, 1.0), "c_up is -1"),
        (lambda: best_num_draws(1.0, 1.0, float("nan"), 1.0), "s_in2 is nan"),
        (lambda: best_num_draws(1.0, 1.0, 1.0, 1.0, max_draws=1, even=True), "at least 2"),
        (lambda: best_measured([]), "no allocation"),
        (lambda: best_within([], 1.0), "no allocation"),
        (lambda: best_measured([Measurement(1, 1, 1.0, 0.0)]), "cannot be"),
    ],
)
def test_mistakes_are_named(call: object, said: str) -> None:
    with pytest.raises(CarvError, match=said):
        call()  # type: ignore[operator]
