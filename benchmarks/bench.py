"""What the benchmarks share: how a script begins and ends, and rounds of interleaved calls."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from carv_3d.errors import CarvError
from carv_3d.io.files import write_atomic
from carv_3d.io.tables import csv_text

Key = TypeVar("Key")
Value = TypeVar("Value")
Order = Callable[[Mapping[str, Any]], Any]


def script_parser(doc: str | None, **numbers: int) -> argparse.ArgumentParser:
    """A parser that shows the script's docstring, with an option for each whole number and its default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    return parser


def whole_numbers(text: str) -> tuple[int, ...]:
    """Read "4,1,2" as (1, 2, 4)."""
    if not all(part.isascii() and part.isdigit() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers; join them by commas, such as 1,2,4")
    return tuple(sorted({int(part) for part in text.split(",")}))


def trial_options(doc: str | None, methods: Collection[str], budget: float, points: int) -> argparse.ArgumentParser:
    """A parser for trials of several methods: which of them, how many, how long and how often evaluated."""
    parser = script_parser(doc, seeds=3)
    parser.add_argument("--methods", type=joined(), default="K1,K16", help=f"of {', '.join(methods)}; baseline first")
    parser.add_argument("--budget", type=float, default=budget, help="seconds of each run's own steps")
    parser.add_argument("--points", type=int, default=points, help="evaluations of each run after the first")
    return parser


def joined(known: Collection[str] = ()) -> Callable[[str], list[str]]:
    """The type of an option of names joined by commas, such as K1,K16; each is one of `known`, where that is given."""

    def names(text: str) -> list[str]:
        for name in text.split(","):
            if known and name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return text.split(",")

    return names


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's `main` and exit with its status; a CarvError becomes its sentence, and status 1."""
    try:
        sys.exit(main())
    except CarvError as error:
        sys.exit(str(error))


def show_table(header: Sequence[str], rows: Sequence[Sequence[Any]], out: Path | None) -> None:
    """Print rows as CSV, and write them to a file where one is named."""
    text = csv_text(list(header), rows)
    print(text)
    if out:
        write_atomic(out, text)


def replace_rows(
    path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], key: Sequence[str], order: Order
) -> None:
    """Write rows into a CSV, in place of those of the same key; the others of the file stay.

    order: of a row, its place in the file; rows of one place keep their order.
    """
    old = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
    made = {tuple(str(row[name]) for name in key) for row in rows}
    kept = [row for row in old if tuple(row[name] for name in key) not in made]
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*kept, *map(dict, rows)], key=order))


def interleaved(calls: Mapping[Key, Callable[[], Value]], repeats: int) -> dict[Key, list[Value]]:
    """The results of `repeats` rounds of all calls, so that what slows the machine slows all of them."""
    results: dict[Key, list[Value]] = {key: [] for key in calls}
    for _ in range(repeats):
        for key, call in calls.items():
            results[key].append(call())
    return results
