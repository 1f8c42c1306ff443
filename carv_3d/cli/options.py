"""`carv options`: every option with its default, what it takes and what it does, as declared in the option classes."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Iterator

from carv_3d.cli.parser import Parser, command
from carv_3d.errors import CarvError

# name -> (module, class, who reads it)
TABLES = {
    "generate": ("carv_3d.generate.config", "Config", "carv generate, carv variance and carv compare"),
    "distill": ("carv_3d.distill.options", "DistillOptions", "carv distill"),
    "attribute": ("carv_3d.attribution.command", "AttributeOptions", "carv attribute"),
    "vsd": ("carv_3d.guidance.vsd_options", "VSDOptions", "variational score distillation (library, threestudio)"),
    "estimator": ("carv_3d.core.estimator", "EstimatorOptions", "CarvEstimator and sds_loss (library)"),
}
HELP = f"""carv options [COMMAND [WORD]]

List options: their names, defaults and meaning.

COMMAND is {", ".join(TABLES)}. WORD selects the options that contain it.

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


def _parser() -> Parser:
    parser = Parser("carv options", HELP)
    parser.add_argument("--markdown", action="store_true", help="all of them, as docs/OPTIONS.md has them")
    return parser


@command(_parser)
def main(args: argparse.Namespace) -> int:
    """`carv options`: see its --help."""
    if args.markdown:
        print(markdown(), end="")
        return 0
    if args.options:
        raise CarvError(f"carv options lists options and sets none; leave {args.options[0]} out")
    name, word = [*args.words, *("generate", "")[len(args.words) :]][:2]
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
        group: str | None = None
        for key, default, due, text in _rows(name):
            path, _, last = key.rpartition(".")
            if path != group:
                heading = f"\n### {path}\n" if path else ""
                parts.append(f"{heading}\n| option | default | takes | meaning |\n|---|---|---|---|\n")
                group = path
            cells = (f"`{last}`", f"`{default}`", due, text)
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


def _rows(name: str) -> Iterator[tuple[str, str, str, str]]:
    """(dotted name, default, what it takes, what it does) of every option."""
    module, kind, _ = TABLES[name]
    made = getattr(importlib.import_module(module), kind)
    options = made(query="") if "query" in made.declared() else made()
    rows = [(key, declared, value) for key, declared, value in options.walk() if not declared.is_group]
    for key, declared, value in sorted(rows, key=lambda row: row[0].rpartition(".")[0]):
        if declared.help:
            shown = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
            yield key, shown, declared.due, declared.help
