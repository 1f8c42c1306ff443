"""Planted faults, applied one by one in a copy of the repository: which of them do the tests notice?

    ./install.sh python benchmarks/mutation.py [--area core,compare] [--only TEXT] [--workers 2] [--out FILE]

Every fault is an entry of `benchmarks/mutants/AREA.yaml`: a file, a text that stands in it once, what replaces it,
and the tests that should notice. A fault is killed when one of these tests fails. One whose text is gone is stale.
The figures of all lists go to docs/results/mutants.csv, those of some faults to --out alone, and the survivors to the
terminal. Tests start in a process that has the large libraries loaded, so that a fault takes seconds.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import yaml
from rich.progress import track

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "results" / "mutants.csv"
COPIED = (
    "carv_3d",
    "custom",
    "benchmarks",
    "tests",
    "docs",
    "examples",
    "pyproject.toml",
    "README.md",
    "install.sh",
    "requirements.lock",
    "CONTRIBUTING.md",
)
TIME_LIMIT = 300  # seconds; a fault that makes the tests hang is killed
LOADED = (
    "torch", "numba", "scipy.stats", "nerfacc", "omegaconf", "pytest", "rich", "accelerate", "trimesh",
    "diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.schedulers.scheduling_ddim", "diffusers.schedulers.scheduling_ddpm",
    "transformers.models.clip.modeling_clip", "transformers.models.clip.tokenization_clip",
)  # fmt: skip
ENVIRONMENT = {
    "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1",
}  # fmt: skip
PROCESSES = multiprocessing.get_context("forkserver")


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
    """The lists of `benchmarks/mutants/`, by their names."""
    files = sorted((ROOT / "benchmarks" / "mutants").glob("*.yaml"))
    read = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in files}
    return {name: [Mutant(**entry) for entry in entries] for name, entries in read.items()}


def copy_repository(folder: Path) -> Path:
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
    try:
        code = exit_code(copy, mutant.tests.split())
    finally:
        path.write_text(text, encoding="utf-8")
    if code not in (None, 0, 1, 2):  # None: it hung; 2: a test module that cannot be imported
        raise SystemExit(f"pytest ended with {code} for {mutant.file} and {mutant.tests}")
    return "survived" if code == 0 else "killed"


def exit_code(copy: Path, tests: Sequence[str]) -> int | None:
    """What pytest ends with in the copy, in a process of its own; None where it is too slow."""
    process = PROCESSES.Process(target=_run_pytest, args=(str(copy), list(tests)))
    process.start()
    process.join(TIME_LIMIT)
    if process.is_alive():
        os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
        return None
    return process.exitcode


def _run_pytest(copy: str, tests: Sequence[str]) -> None:
    os.setsid()  # so that what the tests start ends with them
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores, and tests send
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.chdir(copy)
    os.environ.update(ENVIRONMENT, PYTHONPATH=copy)
    sys.path[:0] = [copy]
    sys.dont_write_bytecode = True
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    import pytest

    os._exit(int(pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests])))


def run_all(chosen: Sequence[tuple[str, Mutant]], workers: int) -> Iterator[tuple[str, Mutant, str]]:
    """(area, fault, outcome) of each, `workers` at once, in the order of the list."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        copies: Queue[Path] = Queue()
        for i in range(workers):
            copies.put(copy_repository(Path(folder) / str(i)))

        def check(tests: str) -> None:
            copy = copies.get()
            try:
                code = exit_code(copy, tests.split())
            finally:
                copies.put(copy)
            if code != 0:
                raise SystemExit(f"{tests}: pytest ends with {code} without any fault; mend that first")

        sets = sorted({m.tests for _, m in chosen})
        list(track(pool.map(check, sets), "without faults", total=len(sets)))

        def tested(item: tuple[str, Mutant]) -> tuple[str, Mutant, str]:
            copy = copies.get()
            try:
                return (*item, outcome(item[1], copy))
            finally:
                copies.put(copy)

        yield from track(pool.map(tested, chosen), "faults", total=len(chosen))


def table(rows: Sequence[tuple[str, Mutant, str]]) -> list[tuple[str, int, int]]:
    """(area, killed, all) of every area, and of all together."""
    out = []
    for area in [*dict.fromkeys(area for area, _, _ in rows), "all"]:
        outcomes = [o for a, _, o in rows if area in (a, "all") and o != "stale"]
        out.append((area, outcomes.count("killed"), len(outcomes)))
    return out


def write(path: Path, rows: Sequence[tuple[str, Mutant, str]]) -> None:
    """The CSV, a line for each fault."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(("area", "file", "old", "new", "outcome", "reason"))
        writer.writerows((area, m.file, m.old, m.new, result, m.reason) for area, m, result in rows)


def main() -> int:
    """Apply the faults, write the table, and name the survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--area", default="", help="lists, joined by commas (default: all)")
    parser.add_argument("--only", default="", help="faults whose file or text holds this")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--out", type=Path, help="a CSV (default: the table of docs/results, where all faults are tried)"
    )
    options = parser.parse_args()
    lists = areas()
    names = [name for name in options.area.split(",") if name] or list(lists)
    if unknown := set(names) - set(lists):
        parser.error(f"there is no list {', '.join(sorted(unknown))}; there are: {', '.join(lists)}")
    os.environ.update(ENVIRONMENT)
    PROCESSES.set_forkserver_preload(list(LOADED))
    chosen = [(name, m) for name in names for m in lists[name] if options.only in f"{m.file} {m.old}"]
    rows = list(run_all(chosen, options.workers))
    out = options.out or (None if options.area or options.only else TABLE)  # some faults are not the table of all
    if out is not None:
        write(out, rows)
    for area, m, result in rows:
        if result != "killed":
            print(f"{result}: {area}: {m.file}: {m.old!r} -> {m.new!r} {m.reason}")
    for area, killed, count in table(rows):
        print(f"{area:<12} {killed} of {count} killed" + (f" ({killed / count:.0%})" if count else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
