"""A finished run as numbers: its axes, its metrics, and what it was a run of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from carv_3d.errors import CarvError, shown

Array = NDArray[np.float64]
#: What a curve may be drawn against; all of them count from the run's beginning.
AXES = ("steps", "nfe", "renders", "seconds")
#: Settings that say how long a run is, how it is shown or where, but not how it estimates.
NOT_A_METHOD = (
    "seed", "device", "trainer.", "checkpoint.", "system.exporter", "system.prompt_processor.prompt", "data.eval_",
    "data.n_test_views", "data.n_val_views", "name", "tag", "timestamp", "exp_", "trial_", "n_gpus", "resume",
    "description", "use_timestamp", "system.guidance.trainer_max_steps", "system.guidance.max_step_percent",
)  # fmt: skip
MAX_LABEL = 48  # characters of a method's name
MAX_READ_LABEL = 80  # of one that is given to runs that are there


@dataclass
class RunRecord:
    """One run. `axes` and `metrics` hold N values by name, NaN where a row has none.

    settings: its flattened configuration, without what is no part of a method.
    notes: what a reader of the curves must know about this run, one sentence each.
    """

    method: str
    prompt: str
    seed: int
    folder: Path
    axes: dict[str, Array]
    metrics: dict[str, Array]
    settings: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def series(self, metric: str, axis: str) -> tuple[Array, Array]:
        """The points (x, y) at which both are known, by rising x; empty where there are none."""
        if metric not in self.metrics or axis not in self.axes:
            return np.empty(0), np.empty(0)
        x, y = self.axes[axis], self.metrics[metric]
        known = np.isfinite(x) & np.isfinite(y)
        x, y = x[known], y[known]
        order = np.argsort(x, kind="stable")
        return x[order], y[order]


def check_label(name: str, where: str, most: int = MAX_LABEL) -> str:
    """The name of a method, as tables, images and pages have it; CarvError, which begins with `where`.

    >>> check_label("ours", "--method")
    'ours'
    """
    if not name.strip() or len(name) > most or not name.isprintable():
        raise CarvError(f"{where}: {shown(name)} is no usable name of a method; take 1 to {most} printable characters")
    return name


def is_step(number: float) -> bool:
    """Whether a file's number can be that of a step: not NaN, not below 0, and within what a float counts."""
    return 0 <= number < 2**53


def columns(rows: Sequence[Mapping[str, float]]) -> dict[str, Array]:
    """Rows by name -> arrays by name."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name, math.nan) for row in rows], float) for name in names}


def method_settings(flat: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What of a flattened configuration makes a method."""
    return {key: value for key, value in flat if not key.startswith(NOT_A_METHOD)}


def name_methods(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Runs with no method's name get one: of the settings in which they differ, or of their folder.

    Runs of the same settings have the same name, runs of others never have.

    Raises:
        CarvError: two folders whose paths end alike are of different settings.
    """
    unnamed = [run for run in runs if not run.method]
    keys = sorted({key for run in unnamed for key in run.settings})
    differing = [key for key in keys if len({run.settings.get(key) for run in unnamed}) > 1]
    own = [key for key in differing if key.startswith("system.guidance")]
    chosen = differing if len(differing) <= 4 else own

    def label(run: RunRecord) -> str:
        parts = [f"{key.rpartition('.')[2]}={run.settings.get(key, '—')}" for key in chosen]
        text = ", ".join(parts)
        return text if parts and len(text) <= MAX_LABEL else run.folder.name[:MAX_LABEL] if parts else "runs"

    def same(run: RunRecord) -> tuple[str | None, ...]:
        return tuple(run.settings.get(key) for key in differing)

    first: dict[tuple[str | None, ...], RunRecord] = {}
    for run in unnamed:
        first.setdefault(same(run), run)
    given = {run.method for run in runs if run.method}
    ways: tuple[Callable[[RunRecord], str], ...] = (
        label,
        lambda run: run.folder.name[:MAX_LABEL],
        lambda run: str(run.folder)[-MAX_LABEL:],
    )
    for name in ways:
        names = {key: name(run) for key, run in first.items()}
        if len({*names.values(), *given}) == len(names) + len(given):
            return [run if run.method else replace(run, method=names[same(run)]) for run in runs]
    folder = unnamed[0].folder
    raise CarvError(f"the methods of these runs cannot be named by their folders; name each: NAME={folder}")


def check_comparable(runs: Sequence[RunRecord], baseline: str | None = None) -> list[str]:
    """The methods, the baseline first (the first that was given, without a name).

    Raises:
        CarvError: no run, an unknown baseline, or methods whose runs are of different prompts.
    """
    if not runs:
        raise CarvError("there is nothing to compare; name run folders, or --prompt and --method to make runs")
    methods = list(dict.fromkeys(run.method for run in runs))
    if baseline is not None and baseline not in methods:
        raise CarvError(f"--baseline is {baseline!r}, and the methods are: {', '.join(methods)}")
    first = baseline or methods[0]
    methods = [first, *(m for m in methods if m != first)]
    prompts = {m: {run.prompt for run in runs if run.method == m} for m in methods}
    for method in methods[1:]:
        for own, other in ((first, method), (method, first)):
            missing = sorted(prompts[other] - prompts[own])
            if missing:
                raise CarvError(
                    f"{own} has no run of {missing[0]!r}, and {other} has; a comparison is of the same prompts: "
                    "add the missing run, or leave the other out"
                )
    return methods
