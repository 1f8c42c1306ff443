"""Nested mappings (from YAML) into nested options: a mistake is named, with the nearest right key."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

from carv_3d.core.options import Options
from carv_3d.errors import CarvError, first_line, shown
from carv_3d.io.structured import check_numbers

T = TypeVar("T", bound=Options)


def read_options(defaults: T, values: Mapping[str, Any]) -> T:
    """New options like `defaults` with `values` put in, group by group; neither argument is changed.

    Args:
        defaults: options; a field that holds options is a group of its own.
        values: may name any part of the fields, nested as the groups are.

    Raises:
        CarvError: an unknown key (with the nearest that exists), a wrong value, or values that exclude each other;
            each with its full name.
    """
    return _read(defaults, values, "", [full for full, _, _ in defaults.walk()])


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


def full_key(options: Options, key: str) -> str:
    """The dotted name of an option, of which the last part is enough where one option has it.

    Raises:
        CarvError: there is none, with the nearest that there is; or several options are meant.
    """
    key = options.renamed.get(key, key)
    every = {full: declared for full, declared, _ in options.walk()}
    matches = [full for full, declared in every.items() if full.endswith(f".{key}") and not declared.is_group]
    if key in every or len(matches) == 1:
        return key if key in every else matches[0]
    if matches:
        raise CarvError(f"{key!r} may be {' or '.join(matches)}; write the whole name")
    path, _, name = key.rpartition(".")
    raise CarvError(f"unknown option {key!r}{_nearest(key, name, path, list(every))}")


def read_override(override: str, options: Options) -> Any:
    """The word key=value as an OmegaConf group that can be merged with others.

    The value is read as YAML, that of a text as it stands.

    Raises:
        CarvError: it is no such word, the option is unknown, or the value is no YAML.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    key, equals, value = override.partition("=")
    if not equals or not all(part.isidentifier() for part in key.split(".")):
        raise CarvError(f"{shown(override)} is no option: write key=value, such as num_draws=8")
    full = full_key(options, key)
    declared = next(option for name, option, _ in options.walk() if name == full)
    if declared.is_text and not (value == "null" and declared.default is None):
        node: Any = escaped(value)
        for part in reversed(full.split(".")):
            node = {part: node}
        return OmegaConf.create(node)
    try:
        check_numbers(value)
        return OmegaConf.from_dotlist([f"{full}={value}"])
    except (YAMLError, OmegaConfBaseException, ValueError) as error:  # ValueError: Python's, for endless digits
        raise CarvError(f"the value of {shown(override)} cannot be read: {first_line(error)}") from error


def read_words(words: Sequence[str], options: Options) -> dict[str, Any]:
    """The words key=value as nested values for `read_options`, the later ones on top."""
    return resolved("the options", *(read_override(word, options) for word in words))


def escaped(value: Any) -> Any:
    """Nested plain data of which OmegaConf resolves nothing: `${` in a text stands for itself."""
    if isinstance(value, dict):
        return {k: escaped(v) for k, v in value.items()}
    if isinstance(value, list):
        return [escaped(v) for v in value]
    if isinstance(value, str):  # backslashes before "${" escape it, and each other
        return re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", value)
    return value


def resolved(what: str, *parts: Any) -> dict[str, Any]:
    """OmegaConf groups and mappings merged, the later ones on top, with every `${...}` resolved.

    Raises CarvError, speaking of `what` ("the options"), where that fails.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        merged = OmegaConf.to_container(OmegaConf.merge({}, *parts), resolve=True)
    except (OmegaConfBaseException, ValueError, TypeError) as error:  # TypeError: a list where a group is
        plain = [OmegaConf.to_container(p, resolve=False) if OmegaConf.is_config(p) else p for p in parts]
        for earlier, later in itertools.combinations(plain, 2):
            if clash := _clash(earlier, later):
                raise CarvError(clash) from error
        raise CarvError(f"{what} cannot be resolved: {first_line(error)}") from error
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def _clash(earlier: Any, later: Any, path: str = "") -> str:
    """What is wrong where a list or a value stands for a group of options, or a group for a list; "" otherwise."""
    if isinstance(earlier, Mapping) and isinstance(later, Mapping):
        inner = (_clash(earlier[key], later[key], f"{path}.{key}" if path else key) for key in later if key in earlier)
        return next(filter(None, inner), "")
    group, reference = isinstance(earlier, Mapping), isinstance(later, str) and "${" in later
    if group == isinstance(later, Mapping) or reference or not (group or isinstance(earlier, list)):
        return ""
    due = f"a group of options: write {path}.NAME=VALUE, or NAME: VALUE below it in a file" if group else "a list"
    return f"{path or 'the configuration'} is {shown(later)}; it must be {due}"


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
    full, key, path = full.lower(), key.lower(), path.lower()  # as all names are
    inside = [k for k in every_key if k.rpartition(".")[0] == path]
    if not inside:  # there is no such group
        path, inside = "", [k for k in every_key if "." not in k]
    near = difflib.get_close_matches(full, inside, 1, 0.7)
    if not near:  # the right name in the wrong place, or a slip in both
        last = {k.rpartition(".")[2]: k for k in every_key}
        near = [last[m] for m in difflib.get_close_matches(key, list(last), 1, 0.7)]
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; {path or 'the top level'} has: {', '.join(k.rpartition('.')[2] for k in inside)}"
