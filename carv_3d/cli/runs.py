"""`carv runs`: what runs there are, and `carv runs clean`, which removes some."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from carv_3d.cli.parser import Parser, command, flags
from carv_3d.cli.streams import answer
from carv_3d.config.request import CleanOptions
from carv_3d.errors import CarvError, printable
from carv_3d.io.files import expanded
from carv_3d.runs.listing import RunSummary, find_runs, remove_run

HELP = """carv runs [FOLDER]
       carv runs clean [FOLDER] [--state stopped,damaged] [--yes]

List the runs below FOLDER (default: outputs): prompt or model, step, state, score, size.

`carv runs clean` shows the runs of a state and asks before it removes their files.
What a run did not write stays.

examples:
  carv runs
  carv runs outputs/sweep
  carv runs clean --state stopped,damaged"""
LONGEST = 40  # characters of a prompt


def parser() -> Parser:
    """Of `carv runs`' arguments."""
    made = Parser("carv runs", HELP)
    made.declare(CleanOptions, "state", "yes", group="of carv runs clean")
    return made


@command(parser)
def main(args: argparse.Namespace) -> int:
    """`carv runs`: see its --help."""
    words, given = list(args.given), flags(args)
    cleaning = words[:1] == ["clean"]
    words = words[cleaning:]
    if len(words) > 1:
        raise CarvError(f"{len(words)} folders were given; name one, such as carv runs outputs")
    if words == [""]:
        raise CarvError("the folder is empty text; name one, such as carv runs outputs")
    if given and not cleaning:
        raise CarvError(f"--{min(given)} is of carv runs clean; write carv runs clean, or leave it out")
    folder = expanded(words[0] if words else "outputs")
    runs = find_runs(folder)
    if cleaning:
        options = CleanOptions(**given)
        return _clean([run for run in runs if run.state in options.state], folder, options)
    if not runs:
        print(printable(f"There are no runs in {folder}."))
    _show(runs)
    return 0


def _show(runs: Sequence[RunSummary]) -> None:
    """A line for each run, in columns."""
    from rich.filesize import decimal

    cells = [("run", "of", "step", "state", "score", "size")]
    for run in runs:
        step = str(run.step) if run.steps is None else f"{run.step}/{run.steps}"
        subject = run.subject if len(run.subject) <= LONGEST else run.subject[: LONGEST - 1] + "…"
        cells.append((str(run.folder), subject, step, run.state, run.score, decimal(run.size)))
    rows = [[printable(cell) for cell in row] for row in cells]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows if runs else []:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    for run in runs:
        if run.note:
            print(printable(f"{run.folder}: {run.note}"))


def _clean(runs: Sequence[RunSummary], folder: Path, options: CleanOptions) -> int:
    """Ask, then remove."""
    from rich.filesize import decimal

    states = " or ".join(options.state)
    if not runs:
        print(printable(f"There are no {states} runs in {folder}."))
        return 0
    _show(runs)
    what = f"{len(runs)} run{'s' * (len(runs) > 1)}, {decimal(sum(run.size for run in runs))}"
    if not options.yes:
        if not sys.stdin.isatty():
            raise CarvError("carv runs clean asks before it removes anything, and there is nobody to ask; add --yes")
        if answer(f"Remove {what}? [y/N] ").lower() not in ("y", "yes"):
            print("Nothing was removed.")
            return 0
    kept: list[CarvError] = []
    for run in runs:
        try:
            left = remove_run(run)
        except CarvError as error:
            kept.append(error)
            continue
        if left:
            names = ", ".join(path.name for path in left[:3])
            print(printable(f"Left in {run.folder}: {names}{' and more' * (len(left) > 3)}"))
    if kept:
        raise CarvError(f"{len(runs) - len(kept)} of {len(runs)} runs were removed, the others not: {kept[0]}")
    print(f"Removed {what}.")
    return 0
