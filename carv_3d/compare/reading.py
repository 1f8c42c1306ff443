"""Run folders -> `RunRecord`s: those of `carv generate` and `carv compare`, and threestudio's trials."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from carv_3d.compare import threestudio
from carv_3d.compare.records import (
    MAX_READ_LABEL,
    RunRecord,
    check_label,
    columns,
    is_step,
    method_settings,
    name_methods,
)
from carv_3d.config.reader import to_mapping
from carv_3d.errors import CarvError, shown
from carv_3d.generate.config import load_run
from carv_3d.io.files import explain_os_error
from carv_3d.io.structured import read_json, value_at
from carv_3d.io.tables import read_table
from carv_3d.report.page import flatten
from carv_3d.runs.request import refuse_file

LABEL = "method.json"  # in a run's folder: which method of a comparison it is of
NOT_METRICS = {"step", "seconds", "nfe", "renders"}


def read_runs(words: Sequence[str]) -> list[RunRecord]:
    """The runs of `[NAME=]FOLDER` words, each with its method's name; a comparison's folder gives all of its runs.

    A run that is named twice, or with a copy of its folder, counts once, and has a note: intervals from copies of a run
    would be too narrow.

    Raises:
        CarvError: a folder is missing, is no run, or its metrics cannot be read; one run is named as two methods; in
            one sentence.
    """
    runs: dict[Any, RunRecord] = {}
    for word in words:
        name, equals, rest = word.partition("=")
        if not equals or Path(word).exists():
            name, rest = "", word
        if equals and rest != word:
            check_label(name, f"{shown(word)} is to be NAME=FOLDER", MAX_READ_LABEL)
        if not rest:
            raise CarvError(f"{word!r} names no folder; write FOLDER or NAME=FOLDER")
        for folder in _folders(Path(rest)):
            run = read_run(folder, name)
            first = runs.setdefault(_measured(run), run)
            if first is not run:
                _count_once(first, run)
    return name_methods(list(runs.values()))


def _count_once(first: RunRecord, again: RunRecord) -> None:
    """A note for a run that was named before, or a copy of it; CarvError where it was another method then."""
    same = first.folder.resolve() == again.folder.resolve()
    if first.method != again.method:
        names = " and ".join(repr(run.method) if run.method else "without a name" for run in (first, again))
        what = "is one run and is named twice" if same else f"is a copy of {first.folder}, and they are named"
        raise CarvError(f"{again.folder} {what}, {names}; name it once")
    twice = "is named twice" if same else f"is a copy of {first.folder}"
    first.notes.append(f"{again.folder} {twice} and counts once")


def _measured(run: RunRecord) -> Any:
    """What no two runs share: the times of their steps; without a clock's, which differ by step, the folder."""
    seconds = run.metrics.get("seconds_per_step", np.empty(0))
    if len(np.unique(seconds[np.isfinite(seconds)])) < 2:
        return run.folder.resolve()
    return run.prompt, run.seed, tuple(run.settings.items()), seconds.tobytes()


def _folders(folder: Path) -> list[Path]:
    """A run's folder itself, or the runs of a comparison's folder."""
    if (folder / "metrics.csv").exists() or not (folder / "runs").is_dir():
        return [folder]
    folders = sorted(path.parent for path in (folder / "runs").glob("*/*/metrics.csv"))
    if not folders:
        raise CarvError(f"the comparison in {folder} has no run with metrics yet; let it run first")
    return folders


def read_run(folder: Path, method: str = "") -> RunRecord:
    """The run in `folder`; `method` names it, otherwise its own label does, if it has one."""
    try:
        if not folder.exists():
            raise CarvError(f"there is no folder {folder}; name the folder of a run")
        refuse_file(folder)
        if (folder / "metrics.csv").exists():
            return read_carv(folder, method)
        if threestudio.is_trial(folder):
            return threestudio.read_trial(folder, method)
    except OSError as error:
        raise explain_os_error(error, folder, "read") from error
    raise CarvError(
        f"{folder} is no run: it has neither metrics.csv (carv generate) nor csv_logs or tb_logs (threestudio)"
    )


def read_carv(folder: Path, method: str = "") -> RunRecord:
    """A run of `carv generate` or `carv compare`."""
    path = folder / "metrics.csv"
    rows, notes = checked_rows(path)
    values = columns(rows)
    # its own seconds: each step's are counted as it is done
    axes = {"steps": values["step"], "seconds": np.nancumsum(values["seconds"])}
    axes.update({name: values[name] for name in ("nfe", "renders") if name in values})
    metrics = {name: y for name, y in values.items() if name not in NOT_METRICS}
    metrics["seconds_per_step"] = np.where(values["step"] > 0, values["seconds"], np.nan)
    read = load_run(folder)
    settings = method_settings(flatten(to_mapping(read)))
    return RunRecord(method or _label(folder), read.prompt, read.seed, folder, axes, metrics, settings, notes)


def checked_rows(path: Path) -> tuple[list[dict[str, float]], list[str]]:
    """The rows of a run's CSV, and a note where some were damaged.

    Raises:
        CarvError: not one whole row, no column of steps or seconds, or steps that do not rise: a resumed run cuts the
            file at its checkpoint, so each step is there once.
    """
    rows, damaged = read_table(path, "restore it or leave the run out")
    if not rows:
        raise CarvError(f"{path} is empty or truncated: no whole row is left; leave the run out, or run it again")
    for name in ("step", "seconds"):
        if name not in rows[0]:
            raise CarvError(f"{path} has no column {name!r}; it is truncated, or no metrics of a run")
    whole = [row for row in rows if is_step(row["step"]) and not row["seconds"] < 0]
    damaged += len(rows) - len(whole)
    notes = [f"{path}: {damaged} damaged line(s) left out"] if damaged else []
    if not whole:
        raise CarvError(f"{path} has no row with a step of at least 0; leave the run out, or run it again")
    for before, after in itertools.pairwise(row["step"] for row in whole):
        if after <= before:
            raise CarvError(
                f"{path} has step {after:.0f} after step {before:.0f}, and a run's steps rise; restore it or leave the "
                "run out"
            )
    return whole, notes


def _label(folder: Path) -> str:
    path, fix = folder / LABEL, f"name the method yourself: NAME={folder}"
    label = value_at(read_json(path, fix), "method", str, str(path), fix) if path.exists() else None
    return check_label(label, str(path), MAX_READ_LABEL) if label else ""
