"""`carv options`: every option with its default, what it takes and what it does, as declared in the option classes."""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from carv_3d.cli import attribute, compare, distill, generate, runs, variance, view
from carv_3d.cli.parser import Parser, command
from carv_3d.core.options import Option
from carv_3d.errors import CarvError, shown

# name -> (module, class, who reads it)
TABLES = {
    "generate": ("carv_3d.generate.config", "Config", "carv generate, carv variance and carv compare"),
    "distill": ("carv_3d.distill.options", "DistillOptions", "carv distill"),
    "attribute": ("carv_3d.attribution.request", "AttributeOptions", "carv attribute"),
    "vsd": ("carv_3d.guidance.vsd_options", "VSDOptions", "variational score distillation (library, threestudio)"),
    "estimator": ("carv_3d.core.estimator", "EstimatorOptions", "CarvEstimator and sds_loss (library)"),
}
#: Of the commands whose flags options declare.
PARSERS = (
    generate.parser, variance.parser, compare.parser, attribute.parser, distill.parser, distill.variance_parser,
    view.parser, runs.parser,
)  # fmt: skip
SAME = {"variance": "generate", "compare": "generate"}  # commands that read another's options
HELP = f"""carv options [COMMAND [WORD]]

List options: their names, defaults and meaning.

COMMAND is {", ".join(TABLES)}. variance and compare have those of generate.
WORD selects the options that contain it.

examples:
  carv options generate draws
  carv options distill"""
HEAD = """# Options

Written by `carv options --markdown > docs/OPTIONS.md` from the option classes.

On the command line an option is `key=value`. The last part of its name is enough where one option has it:
`num_draws=8` is `system.guidance.num_draws=8`. In a YAML file options are nested as their names are.

A *schedule* is a number that changes with training: `[v0, v1, end]`, `[start, v0, v1, end]`, or
`[start, v0, v1, s1, v2, s2, ...]`; whole ends count steps, ends with a point epochs (threestudio).
"""


def parser() -> Parser:
    """Of `carv options`' arguments."""
    made = Parser("carv options", HELP)
    made.add_argument("--markdown", action="store_true", help="All of them, as docs/OPTIONS.md has them")
    return made


@command(parser)
def main(args: argparse.Namespace) -> int:
    """`carv options`: see its --help."""
    most = 0 if args.markdown else 2
    if len(args.given) > most:
        takes = "--markdown lists all options" if args.markdown else "carv options takes a command and a word"
        raise CarvError(f"{takes}; leave {shown(args.given[most])} out")
    if args.markdown:
        print(markdown(), end="")
        return 0
    if args.options:
        raise CarvError(f"carv options lists options and sets none; leave {args.options[0]} out")
    name, word = [*args.words, *("generate", "")[len(args.words) :]][:2]
    name = SAME.get(name, name)
    if name not in TABLES:
        raise CarvError(f"there are no options of {name!r}; there are: {', '.join(TABLES)}")
    lines = [f"{key} = {default}  ({due})\n    {text}" for key, default, due, text in _rows(name) if word in key]
    if not lines:
        raise CarvError(f"no option of {name} contains {word!r}; carv options {name} lists all")
    print("\n".join(lines))
    return 0


def markdown() -> str:
    """docs/OPTIONS.md."""
    parts = [HEAD]
    for name, (_, _, readers) in TABLES.items():
        parts.append(f"\n## {name}\n\nRead by {readers}.\n")
        by_path = itertools.groupby(_rows(name), lambda row: row[0].rpartition(".")[0])
        for path, rows in by_path:
            parts.append(f"\n### {path}\n" if path else "")
            parts.append(_table("option", ((key.rpartition(".")[2], *more) for key, *more in rows)))
    parts.append("\n## Flags\n")
    for made in (parser() for parser in PARSERS):
        rows = (_row(flag, declared, declared.default) for flag, declared in made.options.items())
        parts += [f"\n### {made.prog}\n", _table("flag", rows)]
    return "".join(parts)


def _table(what: str, rows: Iterable[Sequence[str]]) -> str:
    lines = [f"\n| {what} | default | takes | meaning |", "|---|---|---|---|"]
    for name, default, *words in rows:
        cells = (f"`{name}`", f"`{default}`", *words)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _rows(name: str) -> Iterator[tuple[str, str, str, str]]:
    """(dotted name, default, what it takes, what it does) of every option."""
    module, kind, _ = TABLES[name]
    made = getattr(importlib.import_module(module), kind)
    options = made(query="") if "query" in made.declared() else made()
    rows = [(key, declared, value) for key, declared, value in options.walk() if not declared.is_group]
    for key, declared, value in sorted(rows, key=lambda row: row[0].rpartition(".")[0]):
        if declared.help:
            yield _row(key, declared, value)


def _row(name: str, declared: Option, value: Any) -> tuple[str, str, str, str]:
    shown = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return name, shown, declared.due, declared.help
