"""JSON, YAML and CSV that may come from anywhere: one checked reader each.

A file is bounded in size before it is read. Whatever is wrong with it becomes one CarvError that names the file, what
is wrong and the `fix` that the caller gives: truncation, no UTF-8, duplicate keys, deep nesting, aliases without end,
integers of hundreds of digits. A byte order mark is skipped. YAML is OmegaConf's, which checks the most by itself.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from carv_3d.errors import CarvError, first_line, shown
from carv_3d.io.files import explain_os_error, open_file

MAX_BYTES = 2**28
MAX_YAML_BYTES = 2**20  # its reader is slow, and a configuration small
MAX_DIGITS = 300  # of an integer; more are beyond float
RESTORE = "restore it"


def read_text(path: Path, fix: str = RESTORE, limit: int = MAX_BYTES) -> str:
    """The UTF-8 text of a file of at most `limit` bytes.

    Raises:
        CarvError: as `open_file`, or no UTF-8.
    """
    with open_file(path, fix, limit) as handle:
        try:
            data = handle.read(limit)
        except OSError as error:
            raise explain_os_error(error, path, "read") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CarvError(f"{path} is not text in UTF-8; {fix}") from None


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one on each line, without empty lines; CarvError where there is none."""
    text = read_text(path, "write one prompt on each line of a text file")
    prompts = [line.strip() for line in text.split("\n") if line.strip()]  # a prompt may hold U+2028
    if not prompts:
        raise CarvError(f"{path} holds no prompts; write one on each line")
    return prompts


def read_json(path: Path, fix: str = RESTORE, kind: type = dict) -> Any:
    """The JSON in a file, an object unless `kind` is list; CarvError for anything else."""
    return parse_json(read_text(path, fix), str(path), fix, kind)


def parse_json(text: str, name: str, fix: str = RESTORE, kind: type = dict) -> Any:
    """The JSON in `text`, which messages call `name`; as `read_json`."""
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except RecursionError:
        raise CarvError(f"{name} is not readable JSON (nested too deeply); {fix}") from None
    except ValueError as error:
        raise CarvError(f"{name} is not readable JSON ({first_line(error)}); {fix}") from error
    _check_letters(text, value, name, fix)
    if not isinstance(value, kind):
        raise CarvError(f"{name} does not hold a JSON {'object' if kind is dict else kind.__name__}; {fix}")
    return value


def _check_letters(text: str, value: Any, name: str, fix: str) -> None:
    r"""CarvError for an escape such as \ud800 that is half of a letter: no file and no page can be written with it."""
    if "\\ud" not in text.lower():
        return
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise CarvError(f"{name} has {half}, half of a letter (a surrogate without its other half); {fix}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)[:80]!r} is there twice")
    return values


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


ODD_NUMBER = re.compile(r"[-+]?(0[0-7_]*[0-7]|[1-9][0-9_]*(:[0-5]?[0-9])+)")  # YAML 1.1: octal, and in sixties

ODD_WORD = re.compile(rf"(?<![\w.+-]){ODD_NUMBER.pattern}(?![\w.:])")  # where one may stand


def check_numbers(text: str) -> None:
    """ValueError for 010, which YAML takes for 8, and for 1:30, for 90: neither is what somebody means."""
    import yaml

    if not ODD_WORD.search(text):  # as of nearly all files, which are then not parsed twice
        return
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and ODD_NUMBER.fullmatch(event.value):
            number, plain = yaml.safe_load(event.value), event.value.replace("_", "")
            if ":" in plain or int(plain) != number:
                meant = "" if ":" in plain else f"or {int(plain)}, "
                raise ValueError(
                    f"{event.value} is {number} in YAML: write {number}, {meant}or {event.value!r} for a text"
                )


def read_yaml(path: Path, fix: str = RESTORE) -> dict[Any, Any]:
    """The mapping in a YAML file, {} for an empty one, with its `${...}` unresolved; CarvError for anything else.

    By OmegaConf, so 1e-3 is a number and a date is text.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    text = read_text(path, fix, MAX_YAML_BYTES)
    try:
        check_numbers(text)
        value = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except RecursionError:
        raise CarvError(f"{path} is not readable YAML (nested too deeply); {fix}") from None
    except (OSError, AssertionError):  # OmegaConf's for a single number
        value = None
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        raise CarvError(f"{path} is not readable YAML ({' '.join(str(error).split())[:160]}); {fix}") from error
    if not isinstance(value, dict):
        held = "a list" if isinstance(value, list) else "no group"
        raise CarvError(f"{path} must hold groups of options (key: value), and it holds {held}; {fix}")
    return value


KINDS = {str: "text", int: "a whole number", bool: "true or false"}


def value_at(values: Mapping[str, Any], dotted: str, kind: type, name: str, fix: str = RESTORE) -> Any:
    """The value at a dotted name of a file's content; None where there is nothing.

    Args:
        values: nested mappings, as a reader here gives them.
        dotted: such as "system.seed".
        kind: str, int or bool.
        name: of the file, for the message.
        fix: what the message ends in.

    Raises:
        CarvError: another kind of value stands there, or no group on the way; names file, key, value and what is due.
    """
    here: Any = values
    parts = dotted.split(".")
    for n, part in enumerate(parts):
        if here is None:
            return None
        if not isinstance(here, Mapping):
            raise CarvError(f"{name}: {'.'.join(parts[:n])} is {shown(here)}; it must be a group of keys; {fix}")
        here = here.get(part)
    if here is not None and type(here) is not kind:
        raise CarvError(f"{name}: {dotted} is {shown(here)}; it must be {KINDS[kind]}; {fix}")
    return here


def read_csv(path: Path, fix: str = RESTORE, quoted: bool = True) -> tuple[list[dict[str, str]], int]:
    """The rows of a CSV by the names in its first line, and how many damaged lines were left out.

    Damaged is a last line without its end, which may have lost digits, and one with too few or too many cells.
    quoted: whether cells may stand in quotes; without, a stray quote damages its own line alone.
    """
    text, _, torn = read_text(path, fix).replace("\0", "\ufffd").rpartition("\n")
    reader = csv.reader(io.StringIO(text, newline=""), quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
    try:
        header, *lines = [line for line in reader if line] or [[]]
    except csv.Error as error:
        raise CarvError(f"{path} is not readable CSV (line {reader.line_num}: {error}); {fix}") from error
    if len(set(header)) < len(header):
        name = next(name for name in header if header.count(name) > 1)
        raise CarvError(f"{path} has two columns of the name {name[:80]!r}; {fix}")
    rows = [dict(zip(header, line)) for line in lines if len(line) == len(header)]
    return rows, len(lines) - len(rows) + bool(torn)


def conforms(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of an annotated kind; numbers must be finite as floats.

    >>> conforms({"a": [1, 2.5]}, dict[str, list[float]]), conforms([[1, "x"]], list[tuple[int, float]])
    (True, False)
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        return isinstance(value, dict) and all(conforms(v, arguments[1]) for v in value.values())
    if origin is list:
        return isinstance(value, list) and all(conforms(v, arguments[0]) for v in value)
    if origin is tuple:
        same = isinstance(value, list) and len(value) == len(arguments)
        return same and all(map(conforms, value, arguments))
    if kind in (int, float):
        return type(value) in (int, kind) and abs(value) < sys.float_info.max
    return isinstance(value, kind)


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
