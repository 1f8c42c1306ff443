"""Planted faults, applied one by one in a copy of the repository: which of them do the tests notice?

    ./install.sh python benchmarks/mutation.py [--area core,compare] [--only TEXT] [--workers 2] [--out FILE]

Every fault is a line of a list in `benchmarks/mutants/`: a file, a text that stands in it once, what replaces it, and
the tests that should notice. A fault is killed when one of these tests fails. One whose text is gone is stale.
The figures go to docs/results/mutants.csv, and the survivors to the terminal.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import mutants
from rich.progress import track

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("carv_3d", "custom", "benchmarks", "tests", "docs", "pyproject.toml", "README.md", "install.sh")
TIME_LIMIT = 300  # seconds; a fault that makes the tests hang is killed


@dataclass(frozen=True)
class Mutant:
    """One planted fault.

    Args:
        file: its path below the repository.
        old: a text that stands in the file once.
        new: what replaces it.
        tests: paths of the tests that should notice, as pytest takes them.
        reason: why it survives, where it is known to.
    """

    file: str
    old: str
    new: str
    tests: str
    reason: str = ""


def areas() -> dict[str, list[Mutant]]:
    """The lists of `benchmarks/mutants/`, by the name of their module."""
    names = [module.name for module in pkgutil.iter_modules(mutants.__path__)]
    return {name: [Mutant(*row) for row in importlib.import_module(f"mutants.{name}").MUTANTS] for name in names}


def copy_of_the_repository(folder: Path) -> Path:
    """The parts that tests need, copied into `folder`."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, target)
    return folder


def outcome(mutant: Mutant, copy: Path) -> str:
    """killed | survived | stale, of one fault in a copy of the repository, which is put back afterwards."""
    path = copy / mutant.file
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if text.count(mutant.old) != 1:
        return "stale"
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    environment = {
        **os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *mutant.tests.split()]
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        return "killed"
    finally:
        path.write_text(text, encoding="utf-8")
    if done.returncode not in (0, 1, 2):  # 2: a test module that cannot be imported
        raise SystemExit(f"pytest ended with {done.returncode} for {mutant.file}: {done.stdout.decode()[-300:]}")
    return "survived" if done.returncode == 0 else "killed"


def run_all(chosen: Sequence[tuple[str, Mutant]], workers: int) -> Iterator[tuple[str, Mutant, str]]:
    """(area, fault, outcome) of each, `workers` at once, in the order of the list."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        copies: Queue[Path] = Queue()
        for i in range(workers):
            copies.put(copy_of_the_repository(Path(folder) / str(i)))

        def one(item: tuple[str, Mutant]) -> tuple[str, Mutant, str]:
            copy = copies.get()
            try:
                return (*item, outcome(item[1], copy))
            finally:
                copies.put(copy)

        yield from pool.map(one, chosen)


def table(rows: Sequence[tuple[str, Mutant, str]]) -> list[tuple[str, int, int]]:
    """(area, killed, all) of every area, and of all together."""
    out = []
    for area in [*dict.fromkeys(area for area, _, _ in rows), "all"]:
        outcomes = [o for a, _, o in rows if area in (a, "all") and o != "stale"]
        out.append((area, outcomes.count("killed"), len(outcomes)))
    return out


def main() -> int:
    """Apply the faults, write the table, and name the survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--area", default="", help="lists, joined by commas (default: all)")
    parser.add_argument("--only", default="", help="faults whose file or text holds this")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "mutants.csv")
    options = parser.parse_args()
    lists = areas()
    names = [name for name in options.area.split(",") if name] or list(lists)
    if unknown := set(names) - set(lists):
        parser.error(f"there is no list {', '.join(sorted(unknown))}; there are: {', '.join(lists)}")
    chosen = [(name, m) for name in names for m in lists[name] if options.only in f"{m.file} {m.old}"]
    rows = list(track(run_all(chosen, options.workers), "faults", total=len(chosen)))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(("area", "file", "old", "new", "outcome", "reason"))
        writer.writerows((area, m.file, m.old, m.new, result, m.reason) for area, m, result in rows)
    for area, m, result in rows:
        if result != "killed":
            print(f"{result}: {area}: {m.file}: {m.old!r} -> {m.new!r} {m.reason}")
    for area, killed, count in table(rows):
        print(f"{area:<12} {killed} of {count} killed" + (f" ({killed / count:.0%})" if count else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
