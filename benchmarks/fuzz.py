"""Odd input of every kind: does any end in a traceback, a hang, or as if it were right?

    ./install.sh python benchmarks/fuzz.py [--area model-json,flags] [--minutes 15] [--seed 0] [--inputs 2000]

Areas are the kinds of files that are read (fuzz_formats.yaml), the options and flags of every command, and the public
functions. An input ends well when the command does its work or refuses it in one sentence. It ends badly in a
traceback, in more than 60 s of computing, or in being taken although its right answer is known to be a refusal.
Inputs and time are spread evenly: each area has its share of both, in rounds, and what a fast one leaves of its time
the slow ones have. Hypothesis draws the inputs, the same ones for a seed; the command that repeats one is printed with
it. The figures of each area go to docs/results/fuzz.csv.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import math
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from carv_3d.cli.threads import settle_threads

os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})
settle_threads()

import fuzz_files  # noqa: E402
import fuzz_library  # noqa: E402
import fuzz_options  # noqa: E402
import hypothesis  # noqa: E402
from fuzz_guard import BAD, FINE, HANG, LIMIT_S, TRACEBACK, WAITS, Case, Outcome, run  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "fuzz.csv"
COLUMNS = ("area", "inputs", "refused", "tracebacks", "hangs", "wrongly accepted")
# what commands import when they begin: each child of a round would import it anew
HEAVY = (
    "generate.run", "generate.dry_run", "distill.command", "distill.variance_command", "attribution.command",
    "attribution.page", "compare.command", "compare.write", "variance.command",
)  # fmt: skip
ROUND_S = 2.0  # of an area, at least, before the next one has its turn
Areas = Mapping[str, tuple[Callable[[Path], Any], set[str]]]


def areas() -> Areas:
    """Name -> (strategy of its inputs above a base, parts of the base that it needs)."""
    files = {
        name: (lambda base, name=name: fuzz_files.cases(name, base), fuzz_files.parts_needed(name))
        for name in fuzz_files.TABLE
    }
    return {**files, **fuzz_options.areas(), **fuzz_library.areas()}


def explore(strategy: Any, seed: int, count: int, execute: Callable[[int, Case], None]) -> None:
    """Call `execute(number, case)` for `count` inputs; the same ones for the same seed."""
    number = 0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def body(case: Case) -> None:
        nonlocal number
        number += 1
        execute(number, case)

    body()


def in_child(strategy: Any, base: Path, seed: int, count: int, after: int, only: int | None, pipe: Any) -> None:
    """What a child does: run the inputs behind `after`, and send each number before and each outcome after it."""
    import torch

    torch.set_num_threads(1)

    def execute(number: int, case: Case) -> None:
        if number <= after or (only is not None and number != only):
            return
        pipe.send((number, case.note, case.words, None))
        pipe.send((number, case.note, case.words, run(case, base)))

    explore(strategy, seed, count, execute)
    pipe.send(None)


def outcomes(strategy: Any, base: Path, seed: int, count: int, ends: float, only: int | None, after: int = 0) -> Any:
    """Yield (number, note, words, outcome) of each input behind `after`; a child that hangs or dies is replaced."""
    context = multiprocessing.get_context("fork")
    while time.monotonic() < ends:
        ours, theirs = context.Pipe()
        child = context.Process(target=in_child, args=(strategy, base, seed, count, after, only, theirs), daemon=True)
        child.start()
        theirs.close()
        message: Any = (after, "", (), None)
        while time.monotonic() < ends or message[3] is None:
            try:
                got = ours.recv() if ours.poll(WAITS * LIMIT_S + 15) else HANG
            except EOFError:
                got = TRACEBACK
            if got is None:
                child.join()
                return
            if isinstance(got, str):
                child.kill()
                child.join()
                after = message[0] + (message[3] is not None)
                yield (*message[:3], Outcome(got, f"the process ended with {child.exitcode}"))
                break
            message = got
            if got[3] is not None:
                after = got[0]
                yield got
        child.kill()
        child.join()


@dataclass
class Area:
    """How far one area is."""

    name: str
    strategy: Any
    share: int
    last: int = 0
    whole: bool = False
    count: Counter[str] = field(default_factory=Counter)

    @property
    def row(self) -> list[Any]:
        """Of the table."""
        return [self.name, sum(self.count.values()), self.count["refused"], *(self.count[kind] for kind in BAD)]

    def advance(self, base: Path, seed: int, seconds: float, only: int | None) -> None:
        """Run inputs for that long, or until the share is done; print what ends badly."""
        ends = time.monotonic() + seconds
        for number, note, words, outcome in outcomes(self.strategy, base, seed, self.share, ends, only, self.last):
            self.last = number
            self.count[outcome.kind] += 1
            if outcome.kind in BAD or only is not None:
                print(
                    f"{outcome.kind}: {note}: {outcome.detail}\n again: benchmarks/fuzz.py --area {self.name} "
                    f"--seed {seed} --inputs {self.share} --only {number}\n  {' '.join(words)[:300]}",
                    flush=True,
                )
        self.whole = time.monotonic() < ends


def survey(names: Sequence[str], seed: int, inputs: int, minutes: float, only: int | None = None) -> list[list[Any]]:
    """Run all areas in rounds, print what ends badly, and return the lines of the table."""
    base = Path(tempfile.mkdtemp(prefix="carv-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)) / "base"
    base.mkdir()
    known, share = areas(), math.ceil(inputs / len(names))
    for name in HEAVY:
        importlib.import_module(f"carv_3d.{name}")
    try:
        fuzz_files.build_base(base, set().union(*(known[name][1] for name in names)))
        for name in set(names) & set(fuzz_files.TABLE):
            outcome = run(fuzz_files.control(name), base)
            assert outcome.kind == FINE, f"{name} with nothing odd: {outcome}"
        everything = [Area(name, known[name][0](base), share) for name in names]
        spread(everything, 60 * minutes, lambda area, seconds: area.advance(base, seed, seconds, only))
    finally:
        shutil.rmtree(base.parent, ignore_errors=True)
    for area in everything:
        print(*area.row, sep=", ", flush=True)
    return [area.row for area in everything]


def spread(everything: Sequence[Area], seconds: float, advance: Callable[[Area, float], None]) -> None:
    """Advance all areas, each for the same time, until they are whole or the time is up.

    The first round takes half of the time, the next ones half of what is left, so that what fast areas leave of theirs
    is spread over the slow ones.
    """
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0 and (waiting := [area for area in everything if not area.whole]):
        for area in waiting:
            advance(area, max(ROUND_S, left / 2 / len(waiting)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where an input ended badly."""
    known = areas()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--area", help=f"joined by commas; all unless given: {', '.join(known)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=2000, help="of all areas together")
    parser.add_argument("--minutes", type=float, default=60, help="for all areas")
    parser.add_argument("--only", type=int, help="the number of a single input")
    parser.add_argument("--out", type=Path, help=f"the table (all areas: {RESULTS.relative_to(ROOT)})")
    args = parser.parse_args(arguments)
    names = args.area.split(",") if args.area else list(known)
    table = survey(names, args.seed, args.inputs, args.minutes, args.only)
    table.append(["all", *(sum(row[i] for row in table) for i in range(1, len(COLUMNS)))])
    print(", ".join(COLUMNS), ", ".join(map(str, table[-1])), sep="\n")
    out = args.out or (None if args.area else RESULTS)
    if out:
        with out.open("w", newline="", encoding="utf-8") as handle:
            csv.writer(handle, lineterminator="\n").writerows([COLUMNS, *table])
    return int(any(table[-1][3:]))


if __name__ == "__main__":
    sys.exit(main())
