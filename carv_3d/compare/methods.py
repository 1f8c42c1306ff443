"""`NAME=key=value,key=value`: a method, its overrides, and the short names that keys may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from carv_3d.compare.records import MAX_LABEL, check_label
from carv_3d.config.reader import full_key
from carv_3d.core.estimator_names import PLAIN, WORDS, estimator_options
from carv_3d.errors import CarvError, shown
from carv_3d.generate.config import Config, find_config, load_config
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
    """The methods of `--method`; CarvError for a name twice, an unknown key, or fewer than two."""
    methods = [parse_method(word) for word in words]
    seen: dict[str, str] = {}
    for method in methods:
        if method.folder in seen:
            other = seen[method.folder]
            raise CarvError(f"the methods {other!r} and {method.name!r} would share a folder; rename one")
        seen[method.folder] = method.name
    if len(methods) < 2:
        raise CarvError(
            "a comparison needs two methods at least: --method NAME=key=value,... --method NAME=key=value,... "
            "(a name alone is the configuration as it is)"
        )
    return methods


def parse_method(word: str) -> Method:
    """`NAME`, `NAME=CONFIG`, `NAME=key=value,key=value` (of a key its last parts are enough), `NAME=is+strat`.

    >>> parse_method("ours=num_draws=8,max_step_percent=[0.98,0.4,100]").overrides
    ['system.guidance.num_draws=8', 'system.guidance.max_step_percent=[0.98,0.4,100]']
    """
    name, equals, rest = word.partition("=")
    name = name.strip()
    method = Method(check_label(name, f"{shown(word)} is to be NAME=key=value,..."))
    for part in split_outside_brackets(rest):
        if "=" not in part and (part.endswith((".yaml", ".yml")) or find_config(Path(part)) != Path(part)):
            method.config = find_config(Path(part))
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
        method.overrides.append(f"{method_key(key.strip(), f'method {name}')}={value}")
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


def method_key(key: str, where: str) -> str:
    """The dotted name of an option; CarvError where there is none, or where it is no part of a method."""
    try:
        full = full_key(Config(), key)
    except CarvError as error:
        raise CarvError(f"{where}: {error}") from None
    if full in NOT_HERE:
        raise CarvError(f"{where}: {key} is no part of a method; use {NOT_HERE[full]}")
    return full
