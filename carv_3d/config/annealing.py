"""Values that change with training, in threestudio's notation (`C()`).

A number stays what it is. A list is piecewise linear: `[v0, v1, end]` runs from v0 at 0 to v1 at `end`;
`[start, v0, v1, end]` waits for `start`; `[start, v0, v1, s1, v2, s2, ...]` continues to v2 at s2.
Whole-number ends count steps, ends with a point count epochs. Before and after, the value stands still.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from numbers import Integral
from typing import Annotated, Any

from carv_3d.core.kinds import Limits, is_finite
from carv_3d.errors import CarvError, shown


class _Schedule:
    """The kind of an annealed option: what it is called, and its check."""

    words = "a number or a schedule"

    @staticmethod
    def check(name: str, value: Any, limits: Limits) -> float | list[float]:
        """As `check_annealed`, with the range of the values in between."""
        out = check_annealed(name, value)
        if not limits.hold(out if isinstance(out, float) else knots(out)[1]):  # all others lie between these
            raise CarvError(f"{name} is {shown(out)}; its values must be numbers{limits}.")
        return out


Annealed = Annotated[float | Sequence[float], _Schedule]


def annealed(value: Annealed, step: float, epoch: float = 0) -> float:
    """The value at a global step (and epoch, for schedules that count epochs)."""
    if isinstance(value, (int, float)):
        return float(value)
    ends, values = knots(value)
    now = step if counts_steps(value) else epoch
    if now <= ends[0]:
        return values[0]
    for (left, a), (right, b) in zip(zip(ends, values), zip(ends[1:], values[1:])):
        if now < right:
            # in threestudio's order of operations: a last bit decides which timestep int(T x) is
            return a + (b - a) * ((now - left) / (right - left))
    return values[-1]


def knots(value: Sequence[float]) -> tuple[list[float], list[float]]:
    """(ends, values) of a schedule list, both of the same length."""
    items = list(value)
    if len(items) == 3:
        items = [0, *items]
    return [float(x) for x in (items[0], *items[3::2])], [float(x) for x in (items[1], *items[2::2])]


def counts_steps(value: Annealed) -> bool:
    """False for a schedule whose last end is written with a point (epochs)."""
    return isinstance(value, (int, float)) or isinstance(list(value)[-1], Integral)


def check_annealed(name: str, value: Any) -> float | list[float]:
    """The value as a number or a plain list; CarvError naming the option if it is neither or out of order."""
    how = "give a number, [v0, v1, end], [start, v0, v1, end] or [start, v0, v1, s1, v2, s2, ...]"
    if is_finite(value):
        return float(value)
    listed = hasattr(value, "__iter__") and hasattr(value, "__len__")  # what has no length may never end
    if isinstance(value, (str, bytes, dict)) or not listed:
        raise CarvError(f"{name} is {shown(value)}, not a finite number or a schedule: {how}.")
    items = list(value)
    if not (len(items) == 3 or (len(items) >= 4 and len(items) % 2 == 0)) or not all(map(is_finite, items)):
        raise CarvError(f"{name} is {shown(items)}, which is no schedule of finite numbers: {how}.")
    ends, _ = knots(items)
    if any(right <= left for left, right in itertools.pairwise(ends)):
        raise CarvError(f"{name} is {shown(items)}, whose ends do not increase: {how}.")
    return items
