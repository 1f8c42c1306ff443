"""The kinds of values that options may have, from annotations: their conversion, their range and their words."""

from __future__ import annotations

import collections.abc
import math
import types
import typing
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union


class Limits(NamedTuple):
    """The range of a number, or of each number of a list."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def hold(self, value: Any) -> bool:
        """Whether a number, or every number of a list, lies in the range; True for anything else."""
        if isinstance(value, (list, tuple)):
            return all(map(self.hold, value))
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return True
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """In words, such as " of at least 1", " from 0 to 1", or nothing."""
        if self.least is not None and self.most is not None:
            return f" from {in_digits(self.least)} to {in_digits(self.most)}"
        words = {"of at least": self.least, "above": self.above, "of at most": self.most, "below": self.below}
        parts = [f"{word} {in_digits(end)}" for word, end in words.items() if end is not None]
        return " " + " and ".join(parts) if parts else ""


def in_digits(end: float) -> str:
    """An end of a range: 1024, 65,536 and 0.02 in digits, 2^40 as a power."""
    if float(end).is_integer() and abs(end) < 2**33:
        return f"{int(end):,}" if abs(end) >= 10_000 else f"{int(end)}"
    exponent = math.log2(abs(end))
    return f"2^{exponent:g}" if exponent.is_integer() and exponent > 0 else f"{end:g}"


def is_finite(value: Any) -> bool:
    """Whether it is a number other than NaN and infinity that a float can hold; True and False are none."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond 1.8e308
        return False


def members(kind: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the kind alone."""
    if typing.get_origin(kind) in (Union, types.UnionType):
        return typing.get_args(kind)
    return (kind,)


def literals(kind: Any) -> tuple[Any, ...]:
    """The words of a kind, if it is of words."""
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def convert(value: Any, kind: Any) -> tuple[bool, Any]:
    """(whether the value is of the kind, the value as it is kept)."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    number = is_finite(value)
    if kind is Any:
        return True, value
    if origin is Literal:
        return isinstance(value, str) and value in arguments, value
    if kind is int:
        whole = number and (isinstance(value, Integral) or int(value) == value)
        return (True, int(value)) if whole else (False, None)
    if kind is float:
        return (True, float(value)) if number else (False, None)
    if kind is Path:
        return (True, Path(value)) if isinstance(value, (str, Path)) else (False, None)
    if isinstance(kind, type) and origin is None:  # bool, str, groups, None
        return isinstance(value, kind), value
    if origin in (list, tuple, collections.abc.Sequence):
        return _convert_items(value, origin, arguments)
    raise TypeError(f"options know no annotation {kind}")


def _convert_items(value: Any, origin: Any, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    if isinstance(value, (str, bytes)) or not isinstance(value, collections.abc.Sequence):
        return False, None
    fixed = origin is tuple and Ellipsis not in arguments
    kinds = arguments if fixed else [arguments[0]] * len(value)
    if len(kinds) != len(value):
        return False, None
    items = [convert(item, kind) for item, kind in zip(value, kinds)]
    if not all(ok for ok, _ in items):
        return False, None
    return True, (tuple if origin is tuple else list)(out for _, out in items)


def words_for(kind: Any, limits: Limits) -> str:
    """What a value of a kind is called."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return f"{kind.__metadata__[0].words}{limits}"
    if origin is Literal:
        return f"one of {', '.join(arguments)}" if len(arguments) > 1 else str(arguments[0])
    if origin in (list, tuple, collections.abc.Sequence):
        if literals(arguments[0]):
            return f"a list of words among {', '.join(literals(arguments[0]))}"
        items = {str: "texts", Path: "files"}.get(arguments[0], "numbers")
        count = f"{len(arguments)} " if origin is tuple and Ellipsis not in arguments else ""
        return f"a list of {count}{items}{limits}"
    if kind in (int, float):
        return f"a {'whole ' * (kind is int)}number{limits}"
    words = {bool: "true or false", str: "text", Path: "a path", type(None): "null"}
    return words.get(kind, "a group of options")
