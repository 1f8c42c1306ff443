"""Annealed values: known values, threestudio's own, and one sentence for what is no schedule."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from carv_3d.config.annealing import annealed, check_annealed
from carv_3d.errors import CarvError


def threestudio_c(value: Any, epoch: int, step: int) -> float:
    """What threestudio's C() gives, for numbers and lists of 3, 4 and 6 or more (steps)."""
    if isinstance(value, (int, float)):
        return value
    if len(value) == 3:
        value = [0, *value]
    pairs = [(value[0], value[1])] + [(value[i + 1], value[i]) for i in range(2, len(value), 2)]
    now = step if isinstance(value[-1], int) else epoch
    for (s0, v0), (s1, v1) in itertools.pairwise(pairs):
        if now < s1 or (s1, v1) == pairs[-1]:
            return v0 + (v1 - v0) * max(min(1.0, (now - s0) / (s1 - s0)), 0.0)
    raise AssertionError


@pytest.mark.parametrize(
    ("value", "step", "epoch", "expected"),
    [
        (0.98, 10**6, 0, 0.98),
        ([1.0, 0.5, 100], 0, 0, 1.0),
        ([1.0, 0.5, 100], 50, 0, 0.75),
        ([1.0, 0.5, 100], 1000, 0, 0.5),
        ([100, 1.0, 0.0, 200], 99, 0, 1.0),
        ([100, 1.0, 0.0, 200], 125, 0, 0.75),
        ([100, 1.0, 0.0, 200, 2.0, 300], 250, 0, 1.0),
        ([100, 1.0, 0.0, 200, 2.0, 300], 300, 0, 2.0),
        ([1.0, 0.0, 10.0], 999, 5, 0.5),  # an end with a point counts epochs
    ],
)
def test_known_values(value: Any, step: int, epoch: int, expected: float) -> None:
    assert annealed(value, step, epoch) == pytest.approx(expected)


@pytest.mark.parametrize("value", [[1.0, 0.5, 100], [20, 1.0, 0.0, 60], [0, 1.0, 0.2, 40, 0.9, 70, 0.1, 90]])
def test_same_as_threestudio_at_every_step(value: Any) -> None:
    for step in range(120):
        assert annealed(value, step) == pytest.approx(threestudio_c(value, 0, step))


@pytest.mark.parametrize(
    "value",
    ["1.0", [1.0, 2.0], [1, 2, 3, 4, 5], [0, 1.0, 2.0, 0], [0, 1, 2, 50, 3, 50], [1, "a", 3], None, True],
)
def test_no_schedule(value: Any) -> None:
    with pytest.raises(CarvError, match=r"^grad_clip is .*\[start, v0, v1, end\]"):
        check_annealed("grad_clip", value)
