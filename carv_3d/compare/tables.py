"""The tables of a comparison: curves, ratios and final scores, made once and written as CSV."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from carv_3d.compare.metrics import SCORES, order
from carv_3d.compare.reach import Reach, reach
from carv_3d.compare.records import AXES, RunRecord
from carv_3d.compare.statistics import Bootstrap, Curve, interval, mean_curve
from carv_3d.io.files import write_atomic
from carv_3d.io.tables import csv_text


@dataclass(frozen=True)
class Final:
    """A method's score at the end of its runs: mean and bootstrap interval (NaN for a single run)."""

    metric: str
    method: str
    mean: float
    low: float
    high: float
    runs: int
    steps: float
    seconds: float


@dataclass
class Comparison:
    """All that is said of some runs. `methods`: the baseline first. `curves`: (metric, axis) -> one per method."""

    runs: list[RunRecord]
    methods: list[str]
    curves: dict[tuple[str, str], list[Curve]]
    reached: list[Reach]
    finals: list[Final]
    notes: list[str]

    @property
    def prompts(self) -> list[str]:
        """In order of appearance."""
        return list(dict.fromkeys(run.prompt for run in self.runs))

    @property
    def metrics(self) -> list[str]:
        """Names of those that have a curve."""
        return list(dict.fromkeys(metric for metric, _ in self.curves))

    def of(self, method: str, prompt: str | None = None) -> list[RunRecord]:
        """The runs of a method, of one prompt or of all."""
        return [run for run in self.runs if run.method == method and prompt in (None, run.prompt)]


def compare(runs: Sequence[RunRecord], methods: Sequence[str], scores: Sequence[str] = ()) -> Comparison:
    """Curves with bands, the ratio to reach the baseline's final score, and final scores.

    methods: the baseline first. scores: further metrics, of those logged, of which higher is better.
    """
    by = {method: [run for run in runs if run.method == method] for method in methods}
    bootstrap = Bootstrap(runs)
    names = order(list(dict.fromkeys(name for run in runs for name in run.metrics)))
    curves: dict[tuple[str, str], list[Curve]] = {}
    for name in names:
        if not _varies(runs, name):
            continue
        for axis in AXES:
            found = [mean_curve(by[method], name, axis, bootstrap) for method in methods]
            if any(found):
                curves[name, axis] = [curve for curve in found if curve]
    reached, finals = [], []
    prompts = list(dict.fromkeys(run.prompt for run in runs))
    for score in [name for name in names if name in (*SCORES, *scores)]:
        finals += [final for method in methods if (final := _final(by[method], score, bootstrap))]
        for axis in AXES:
            for method in methods[1:]:
                reached += _reaches(by[methods[0]], by[method], score, axis, bootstrap, prompts)
    notes = list(dict.fromkeys(note for run in runs for note in run.notes))
    return Comparison(list(runs), list(methods), curves, reached, finals, notes)


def _reaches(
    baseline: Sequence[RunRecord],
    method: Sequence[RunRecord],
    score: str,
    axis: str,
    bootstrap: Bootstrap,
    prompts: Sequence[str],
) -> list[Reach]:
    """The ratio over all prompts, and that of each where there are several."""
    found = [reach(baseline, method, score, axis, bootstrap)]
    for prompt in prompts if len(prompts) > 1 else ():
        base, other = ([run for run in runs if run.prompt == prompt] for runs in (baseline, method))
        found.append(reach(base, other, score, axis, Bootstrap([*base, *other]), prompt))
    return [one for one in found if one]


def _final(runs: Sequence[RunRecord], score: str, bootstrap: Bootstrap) -> Final | None:
    series = [run.series(score, "steps") for run in runs]
    if any(len(y) == 0 for _, y in series):
        return None
    last = np.array([[y[-1]] for _, y in series])
    low = high = math.nan
    if len(runs) > 1:
        low, high = (float(end[0]) for end in interval(bootstrap.means(runs, last)))
    seconds = [run.axes["seconds"][-1] if "seconds" in run.axes else math.nan for run in runs]
    steps = [run.axes["steps"][-1] for run in runs]
    mean = float(last.mean())
    return Final(score, runs[0].method, mean, low, high, len(runs), float(np.mean(steps)), float(np.mean(seconds)))


def _varies(runs: Sequence[RunRecord], name: str) -> bool:
    values = np.concatenate([run.metrics[name] for run in runs if name in run.metrics])
    values = values[np.isfinite(values)]
    return bool(len(values)) and bool(values.max() > values.min())


def write_tables(folder: Path, comparison: Comparison) -> list[Path]:
    """curves.csv, reach.csv, final.csv and runs.csv in `folder`; an empty cell is a value that is not known, and
    inf in reach.csv says that the target was never reached."""
    curve_rows = (
        (metric, axis, c.method, c.runs, *point)
        for (metric, axis), curves in comparison.curves.items()
        for c in curves
        for point in zip(c.x, c.mean, c.low, c.high)
    )
    runs = ((r.method, r.prompt, r.seed, str(r.folder), int(r.axes["steps"][-1])) for r in comparison.runs)
    tables: dict[str, tuple[Sequence[str], Iterable[Sequence[object]]]] = {
        "curves.csv": (("metric", "axis", "method", "runs", "x", "mean", "low", "high"), curve_rows),
        "reach.csv": ([f.name for f in fields(Reach)], map(astuple, comparison.reached)),
        "final.csv": ([f.name for f in fields(Final)], map(astuple, comparison.finals)),
        "runs.csv": (("method", "prompt", "seed", "folder", "steps"), runs),
    }
    for name, (head, rows) in tables.items():
        write_atomic(folder / name, csv_text(head, rows))
    return [folder / name for name in tables]
