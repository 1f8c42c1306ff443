"""Kills, full disks and other faults of the machine, at random moments: is anything lost?

    ./install.sh python benchmarks/faults.py [--subject generate,distill] [--fault kill,full] [--count 20] [--seed 0]

A piece of work is done once undisturbed. Then, again and again, it is done in a process that meets one fault at a
random moment, and is resumed without. It is lost where the resumed work fails or comes to something else than the
undisturbed (states, figures and files, to the byte), or where more than one interval between checkpoints is done again.
What is not killed must end in one sentence. Children are forked from a process that has the libraries loaded, so a
fault costs seconds. The figures go to docs/results/faults.csv.

Faults: kill (SIGKILL), full (a tmpfs of random size, where one can be mounted, and a limit on a file's size elsewhere),
eio (an error of a random write), clock (set back an hour), slow (a disk that takes 50 ms a write), memory (RLIMIT_AS).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from carv_3d.cli.threads import settle_threads

os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})
settle_threads()

import fuzz_files  # noqa: E402
import torch  # noqa: E402
from fault_kinds import KINDS, Measured, enlarge, mount, unmount  # noqa: E402
from fault_subjects import Subject, progress, result, subjects  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "faults.csv"
COLUMNS = ("subject", "fault", "tried", "struck", "losses", "most steps done again", "ends without a sentence")
LIMIT_S = 300.0  # of one piece of work


class Trial(NamedTuple):
    """One fault. struck: whether the work did not end well by itself. lost: what was, or ""."""

    struck: bool
    again: int
    plain: bool
    lost: str


def start(work: Callable[[], int], folder: Path, hook: Callable[[], None] = lambda: None) -> int:
    """Do the work in a child in `folder`, its output in `folder`.out; returns the child's id."""
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        handle = os.open(folder.with_suffix(".out"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = sys.stderr = os.fdopen(handle, "w", buffering=1)
        os.chdir(folder)
        torch.set_num_threads(1)  # those of the parent are not here
        hook()
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(child: int, seconds: float = LIMIT_S) -> int:
    """The exit status of a child, negative for a signal; it is killed after `seconds`."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def undisturbed(subject: Subject, folder: Path) -> tuple[Measured, dict[str, str]]:
    """What the work takes and comes to; RuntimeError where it fails or is not the same when resumed at its end."""
    folder.mkdir()
    begin = time.monotonic()
    if ended(start(subject.begin, folder)):
        raise RuntimeError(f"without a fault it fails: {folder.with_suffix('.out').read_text()[-500:]}")
    seconds = time.monotonic() - begin
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    with _chdir(folder):
        return Measured(seconds, size), result(subject)


@contextlib.contextmanager
def _chdir(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def trial(
    subject: Subject, kind: str, rng: random.Random, folder: Path, whole: tuple[Measured, dict[str, str]]
) -> Trial:
    """Meet one fault, then resume."""
    measured, due = whole
    folder.mkdir()
    disk = kind == "full" and mount(folder, 4096 + int(measured.size * 1.2 * rng.random()))
    hook = KINDS["kill" if disk else kind](rng, measured)
    try:
        child = start(subject.begin, folder, hook)
        status = ended(child, rng.uniform(0, measured.seconds) if kind == "kill" else LIMIT_S)
        said = folder.with_suffix(".out").read_text(errors="replace")
        plain = status in (0, -signal.SIGKILL) or (
            status == 2 and "Traceback" not in said and said.count("carv: ") == 1
        )
        if disk:
            enlarge(folder)
        with _chdir(folder):
            again = max((done - saved for done, saved in progress(subject).values()), default=0)
        if ended(start(subject.resume, folder)):
            lost = f"it cannot be resumed: {folder.with_suffix('.out').read_text()[-300:]!r}"
        else:
            with _chdir(folder):
                now = result(subject)
            differs = sorted(name for name in due.keys() | now.keys() if due.get(name) != now.get(name))
            lost = f"differs in {differs[:3]}" if differs else ""
        if again > subject.interval:
            lost = lost or f"{again} steps are done again"
        if not plain:
            print(f"no sentence: status {status}: {said[-600:]}", flush=True)
        return Trial(status != 0, again, plain, lost)
    finally:
        if disk:
            unmount(folder)
        shutil.rmtree(folder, ignore_errors=True)


def survey(names: Sequence[str], kinds: Sequence[str], count: int, seed: int, minutes: float = 1e9) -> list[list[Any]]:
    """The table's lines; every loss is printed with what repeats it."""
    place = Path(tempfile.mkdtemp(prefix="carv-faults-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    table, ends = [], time.monotonic() + 60 * minutes
    try:
        fuzz_files.build_base(place, {"m", "im"} | ({"p.txt"} if "distill" in names else set()))
        wholes = {name: undisturbed(subjects()[name], place / f"whole-{name}") for name in names}
        trials: dict[tuple[str, str], list[Trial]] = {(name, kind): [] for name in names for kind in kinds}
        for number, (name, kind) in itertools.product(range(count), trials):
            if time.monotonic() > ends:
                break
            rng = random.Random(f"{seed} {name} {kind} {number}")
            trials[name, kind].append(trial(subjects()[name], kind, rng, place / "t", wholes[name]))
            lost = trials[name, kind][-1].lost
            if lost:
                print(f"lost: {name}, {kind}, number {number} of seed {seed}: {lost}", flush=True)
        for (name, kind), done in trials.items():
            counts = [len(done), sum(t.struck for t in done), sum(bool(t.lost) for t in done)]
            again = max((t.again for t in done), default=0)
            table.append([name, kind, *counts, again, sum(not t.plain for t in done)])
            print(*table[-1], sep=", ", flush=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where something was lost, or said no sentence."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--subject", default=",".join(subjects()), help="joined by commas")
    parser.add_argument("--fault", default=",".join(KINDS), help="joined by commas")
    parser.add_argument("--count", type=int, default=20, help="of each fault on each subject")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    table = survey(args.subject.split(","), args.fault.split(","), args.count, args.seed, args.minutes)
    with args.out.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle, lineterminator="\n").writerows([COLUMNS, *table])
    return int(any(row[4] or row[6] for row in table))


if __name__ == "__main__":
    sys.exit(main())
