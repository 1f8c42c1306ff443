"""Nested mappings (from YAML) into nested dataclasses: a mistake is named, with the nearest right key."""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, Union

from carv_3d.errors import CarvError, first_line

T = TypeVar("T")


def read_options(defaults: T, values: Mapping[str, Any], path: str = "") -> T:
    """A new dataclass like `defaults` with `values` put in, group by group; neither argument is changed.

    Args:
        defaults: a dataclass instance; a field that holds a dataclass is a group of its own.
        values: may name any part of the fields, nested as the groups are.
        path: where `values` stands in the whole, for the messages ("system.guidance").

    Raises:
        CarvError: an unknown key (with the nearest that exists), a value of the wrong kind, or one that the
            dataclass itself refuses; each with its full name.
    """
    return _read(defaults, values, path, list(_all_keys(defaults, path)))


def _read(defaults: T, values: Mapping[str, Any], path: str, every_key: list[str]) -> T:
    if not isinstance(values, Mapping):
        whole = path or "the configuration"
        raise CarvError(f"{whole} is {values!r}, but it must be a group of options (key: value)")
    hints = typing.get_type_hints(type(defaults))
    names = [f.name for f in dataclasses.fields(defaults) if f.init]  # type: ignore[arg-type]
    new: dict[str, Any] = {name: getattr(defaults, name) for name in names}
    for key, value in values.items():
        full = f"{path}.{key}" if path else str(key)
        if key not in names:
            raise CarvError(f"unknown option {full!r}{_nearest(full, str(key), path, every_key)}")
        current = getattr(defaults, key)
        if dataclasses.is_dataclass(current):
            new[key] = _read(current, value, full, every_key)
        else:
            new[key] = _convert(value, hints[key], full)
    try:
        return type(defaults)(**new)
    except CarvError as error:
        raise CarvError(f"in {path}: {error}" if path else str(error)) from None


def at_least(options: Any, low: float, *names: str) -> None:
    """CarvError where one of the fields is below `low`."""
    for name in names:
        if getattr(options, name) < low:
            raise CarvError(f"{name} is {getattr(options, name)}; it must be at least {low:g}")


def one_of(options: Any, name: str, allowed: Sequence[str]) -> None:
    """CarvError, with the nearest that is allowed, where the field holds another word."""
    value = getattr(options, name)
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, 1)
        hint = f"did you mean {near[0]}?" if near else f"it must be one of {', '.join(allowed)}"
        raise CarvError(f"{name} is {value!r}; {hint}")


def read_override(override: str, example: str = "system.guidance.num_draws=8") -> Any:
    """The override `a.b=1` as an OmegaConf group; CarvError without "=" or where the value is no YAML."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    key, equals, _ = override.partition("=")
    if not equals or not all(part.isidentifier() for part in key.split(".")):
        raise CarvError(f"{override!r} is no option: write key=value, such as {example}")
    try:
        return OmegaConf.from_dotlist([override])
    except (YAMLError, OmegaConfBaseException) as error:
        raise CarvError(f"the value of {override!r} cannot be read: {first_line(error)}") from error


def resolved(what: str, *parts: Any) -> dict[str, Any]:
    """OmegaConf groups and mappings merged, the later ones on top, with every `${...}` resolved.

    Raises CarvError, speaking of `what` ("the options"), where that fails.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        merged = OmegaConf.to_container(OmegaConf.merge({}, *parts), resolve=True)
    except (OmegaConfBaseException, ValueError, TypeError) as error:  # TypeError: a list where a group is
        raise CarvError(f"{what} cannot be resolved: {first_line(error)}") from error
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def to_mapping(options: Any) -> dict[str, Any]:
    """The dataclass as nested plain data (tuples as lists), as YAML and checkpoints hold it."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return value

    return plain(dataclasses.asdict(options))


def differing_keys(a: Mapping[str, Any], b: Mapping[str, Any], path: str = "") -> list[str]:
    """The dotted names at which two nested mappings differ, sorted."""
    out: list[str] = []
    for key in sorted(set(a) | set(b), key=str):
        full = f"{path}.{key}" if path else str(key)
        left, right = a.get(key), b.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            out += differing_keys(left, right, full)
        elif left != right or (key in a) != (key in b):
            out.append(full)
    return out


def look_up(values: Mapping[str, Any], dotted: str) -> Any:
    """The value at a dotted name; None where there is nothing.

    >>> look_up({"a": {"b": 1}}, "a.b")
    1
    """
    here: Any = values
    for part in dotted.split("."):
        here = here.get(part) if isinstance(here, Mapping) else None
    return here


def _all_keys(options: Any, path: str) -> Iterator[str]:
    for one in dataclasses.fields(options):
        full = f"{path}.{one.name}" if path else one.name
        value = getattr(options, one.name)
        yield full
        if dataclasses.is_dataclass(value):
            yield from _all_keys(value, full)


def _nearest(full: str, key: str, path: str, every_key: Sequence[str]) -> str:
    inside = [k for k in every_key if k.rpartition(".")[0] == path]
    near = difflib.get_close_matches(full, inside, 1, 0.7)
    if not near:  # the right name in the wrong place, or a slip in both
        last = {k.rpartition(".")[2]: k for k in every_key}
        near = [last[m] for m in difflib.get_close_matches(key, list(last), 1, 0.7)]
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; {path or 'the top level'} has: {', '.join(k.rpartition('.')[2] for k in inside)}"


def _convert(value: Any, kind: Any, name: str) -> Any:
    """`value` as the annotation `kind` has it, or a CarvError that says what it must be."""
    ok, out = _try(value, kind)
    if not ok:
        raise CarvError(f"{name} is {value!r}, but it must be {_words(kind)}")
    return out


def _try(value: Any, kind: Any) -> tuple[bool, Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        for one in sorted(arguments, key=lambda a: a is str):  # a word last: it would take anything
            ok, out = _try(value, one)
            if ok:
                return True, out
        return False, None
    if kind is Any:
        return True, value
    if kind is type(None):
        return value is None, None
    if kind is bool:
        return isinstance(value, bool), value
    if kind is int:
        whole = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return (True, int(value)) if whole and int(value) == value else (False, None)
    if kind is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return (True, float(value)) if number else (False, None)
    if kind is str:
        return isinstance(value, str), value
    if origin in (list, tuple, collections.abc.Sequence):
        return _try_sequence(value, origin, arguments)
    raise TypeError(f"the reader does not know the annotation {kind}")


def _try_sequence(value: Any, origin: Any, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    if isinstance(value, (str, bytes)) or not isinstance(value, collections.abc.Sequence):
        return False, None
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        kinds: Sequence[Any] = [arguments[0]] * len(value)
    else:
        kinds = arguments if origin is tuple else [arguments[0]] * len(value)
    if len(kinds) != len(value):
        return False, None
    items = []
    for item, kind in zip(value, kinds):
        ok, out = _try(item, kind)
        if not ok:
            return False, None
        # Annealed schedules tell steps from epochs by whether their last number is whole: keep it as written.
        items.append(item if origin is collections.abc.Sequence else out)
    return True, tuple(items) if origin is tuple else items


def _words(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(a) for a in arguments)
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)} numbers"
    if origin in (list, tuple, collections.abc.Sequence):
        return "a list of numbers"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    return words.get(kind, str(kind))
