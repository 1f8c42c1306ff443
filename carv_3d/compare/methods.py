"""`NAME=key=value,key=value`: a method, its overrides, and the short names that keys may have."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from carv_3d.compare.records import MAX_LABEL
from carv_3d.core.estimator_names import PLAIN, WORDS, estimator_options
from carv_3d.errors import CarvError
from carv_3d.generate.config import Config, load_config
from carv_3d.io.files import slug

NOT_HERE = {"seed": "--seeds", "system.prompt_processor.prompt": "--prompt"}


@dataclass
class Method:
    """One side of a comparison. config: a YAML file under the overrides, or None for the defaults."""

    name: str
    overrides: list[str] = field(default_factory=list)
    config: Path | None = None

    def load(self, prompt: str, seed: int, common: Sequence[str] = (), base: Path | None = None) -> Config:
        """Its configuration for one run; `common` overrides and the `base` file lie under its own."""
        try:
            return load_config(self.config or base, [*common, *self.overrides], prompt, seed)
        except CarvError as error:
            raise CarvError(f"method {self.name}: {error}") from error

    @property
    def folder(self) -> str:
        """The name of its folder, safe on any file system."""
        return slug(self.name, MAX_LABEL)


def parse_methods(words: Sequence[str]) -> list[Method]:
    """The methods of `--methods`; CarvError for a name twice, an unknown key, or fewer than two."""
    methods = [parse_method(word) for word in words]
    seen: dict[str, str] = {}
    for method in methods:
        if method.folder in seen:
            other = seen[method.folder]
            raise CarvError(f"the methods {other!r} and {method.name!r} would share a folder; rename one")
        seen[method.folder] = method.name
    if len(methods) < 2:
        raise CarvError(
            "a comparison needs two methods at least: --methods NAME=key=value,... NAME=key=value,... "
            "(a name alone is the configuration as it is)"
        )
    return methods


def parse_method(word: str) -> Method:
    """`NAME`, `NAME=FILE.yaml`, `NAME=key=value,key=value` (of a key its last parts are enough), `NAME=is+strat`.

    >>> parse_method("ours=num_draws=8,max_step_percent=[0.98,0.4,100]").overrides
    ['system.guidance.num_draws=8', 'system.guidance.max_step_percent=[0.98,0.4,100]']
    """
    name, equals, rest = word.partition("=")
    name = name.strip()
    if not name or len(name) > MAX_LABEL or not name.isprintable():
        raise CarvError(f"{word!r} has no usable name; write NAME=key=value,... (1 to {MAX_LABEL} characters)")
    method = Method(name)
    for part in split_outside_brackets(rest):
        if part.endswith((".yaml", ".yml")) and "=" not in part:
            method.config = Path(part)
            continue
        key, equals, value = part.partition("=")
        if not equals and ("+" in part or part in WORDS):
            options = {**PLAIN, **estimator_options(part)}
            method.overrides += [f"system.guidance.{k}={str(v).lower()}" for k, v in options.items()]
            continue
        if not equals:
            raise CarvError(
                f"method {name}: {part!r} is no option; write key=value, such as num_draws=8, or an estimator's name, "
                "such as is+strat"
            )
        method.overrides.append(f"{full_key(key.strip(), f'method {name}')}={value}")
    return method


def split_outside_brackets(text: str) -> list[str]:
    """`text` at its commas, those within brackets and braces left alone; empty parts are left out."""
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth <= 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def full_key(key: str, where: str) -> str:
    """The dotted name of `key`; CarvError where there is none, with the nearest, or where several are meant."""
    every = _keys(Config())
    found = [key] if key in every else [k for k in every if k.endswith("." + key)]
    if len(found) == 1:
        if found[0] in NOT_HERE:
            raise CarvError(f"{where}: {key} is no part of a method; use {NOT_HERE[found[0]]}")
        return found[0]
    if found:
        raise CarvError(f"{where}: {key!r} may be {' or '.join(found)}; write the whole name")
    last = {k.rpartition(".")[2]: k for k in every}
    near = difflib.get_close_matches(key, every, 1, 0.7) or [
        last[m] for m in difflib.get_close_matches(re.split(r"\.", key)[-1], list(last), 1, 0.6)
    ]
    hint = f"did you mean {near[0]!r}?" if near else "see configs/carv-tiny.yaml for all of them"
    raise CarvError(f"{where}: unknown option {key!r}; {hint}")


def _keys(options: Any, path: str = "") -> list[str]:
    """The dotted names of all options that are no groups."""
    out = []
    for one in dataclasses.fields(options):
        full = f"{path}.{one.name}" if path else one.name
        value = getattr(options, one.name)
        out += _keys(value, full) if dataclasses.is_dataclass(value) else [full]
    return out
