"""Nested mappings (from YAML) into nested options: a mistake is named, with the nearest right key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

from carv_3d.core.options import Options
from carv_3d.errors import CarvError, first_line, shown

T = TypeVar("T", bound=Options)


def read_options(defaults: T, values: Mapping[str, Any], path: str = "") -> T:
    """New options like `defaults` with `values` put in, group by group; neither argument is changed.

    Args:
        defaults: options; a field that holds options is a group of its own.
        values: may name any part of the fields, nested as the groups are.
        path: where `values` stands in the whole, for the messages ("system.guidance").

    Raises:
        CarvError: an unknown key (with the nearest that exists), a wrong value, or values that exclude each other;
            each with its full name.
    """
    return _read(defaults, values, path, [full for full, _, _ in defaults.walk(path)])


def _read(defaults: T, values: Mapping[str, Any], path: str, every_key: list[str]) -> T:
    if not isinstance(values, Mapping):
        whole = path or "the configuration"
        raise CarvError(f"{whole} is {shown(values)}; it must be a group of options (key: value).")
    declared = defaults.declared()
    new: dict[str, Any] = {}
    for given, value in values.items():
        key = defaults.renamed.get(given, given)
        full = f"{path}.{key}" if path else str(key)
        if key not in declared:
            raise CarvError(f"unknown option {full!r}{_nearest(full, str(key), path, every_key)}")
        if declared[key].is_group:
            new[key] = _read(getattr(defaults, key), value, full, every_key)
        else:
            new[key] = declared[key].check(value, full)
    try:
        return replace(defaults, **new)
    except CarvError as error:
        raise CarvError(f"in {path}: {error}" if path else str(error)) from None


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

    return plain(asdict(options))


def _nearest(full: str, key: str, path: str, every_key: Sequence[str]) -> str:
    inside = [k for k in every_key if k.rpartition(".")[0] == path]
    near = difflib.get_close_matches(full, inside, 1, 0.7)
    if not near:  # the right name in the wrong place, or a slip in both
        last = {k.rpartition(".")[2]: k for k in every_key}
        near = [last[m] for m in difflib.get_close_matches(key, list(last), 1, 0.7)]
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; {path or 'the top level'} has: {', '.join(k.rpartition('.')[2] for k in inside)}"
