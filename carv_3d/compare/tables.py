"""The tables of a comparison: curves, ratios and final scores, made once and written as CSV."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from carv_3d.compare.metrics import SCORES, order
from carv_3d.compare.records import AXES, RunRecord
from carv_3d.compare.statistics import Bootstrap, Curve, independent, mean_curve
from carv_3d.compare.time_to_target import TimeToTarget, time_to_target
from carv_3d.io.files import write_atomic
from carv_3d.io.tables import csv_text

MOST_CURVES = 48  # metrics with an image of their own, of about a second each


@dataclass(frozen=True)
class Final:
    """A method's score at the end of its runs: mean and bootstrap interval (NaN below `MIN_RUNS` independent ones)."""

    metric: str
    method: str
    mean: float
    low: float
    high: float
    runs: int
    steps: float
    seconds: float
    independent: int


@dataclass
class Comparison:
    """Some runs compared.

    Attributes:
        methods: the baseline first.
        curves: (metric, axis) -> one for each method.
        times: what each method needs to reach the baseline's final score, by score, axis and prompt.
        finals: the score of each method at its end.
        notes: what must be known of some runs, one sentence each.
    """

    runs: list[RunRecord]
    methods: list[str]
    curves: dict[tuple[str, str], list[Curve]]
    times: list[TimeToTarget]
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

    def select(self, method: str, prompt: str | None = None) -> list[RunRecord]:
        """The runs of a method, of one prompt or of all."""
        return [run for run in self.runs if run.method == method and prompt in (None, run.prompt)]


def compare(runs: Sequence[RunRecord], methods: Sequence[str], scores: Sequence[str] = ()) -> Comparison:
    """Curves with bands, the ratio to reach the baseline's final score, and final scores.

    Args:
        runs: of all methods, for the same prompts.
        methods: the baseline first.
        scores: further metrics, of those logged, of which higher is better.
    """
    by_method = {method: [run for run in runs if run.method == method] for method in methods}
    bootstrap = Bootstrap(runs)
    names = order(list(dict.fromkeys(name for run in runs for name in run.metrics)))
    curves: dict[tuple[str, str], list[Curve]] = {}
    varying = [name for name in names if _varies(runs, name)]
    for name in varying[:MOST_CURVES]:
        for axis in AXES:
            each = [mean_curve(by_method[method], name, axis, bootstrap) for method in methods]
            if any(each):
                curves[name, axis] = [curve for curve in each if curve]
    times, finals = [], []
    prompts = list(dict.fromkeys(run.prompt for run in runs))
    for score in [name for name in names if name in (*SCORES, *scores)]:
        finals += [final for method in methods if (final := _final(by_method[method], score, bootstrap))]
        for axis in AXES:
            for method in methods[1:]:
                times += _times(by_method[methods[0]], by_method[method], score, axis, bootstrap, prompts)
    notes = list(dict.fromkeys(note for run in runs for note in run.notes))
    if len(varying) > MOST_CURVES:
        notes.append(f"of {len(varying)} metrics the first {MOST_CURVES} have curves; the others are left out")
    return Comparison(list(runs), list(methods), curves, times, finals, notes)


def _times(
    baseline: Sequence[RunRecord],
    method: Sequence[RunRecord],
    score: str,
    axis: str,
    bootstrap: Bootstrap,
    prompts: Sequence[str],
) -> list[TimeToTarget]:
    """The ratio over all prompts, and that of each where there are several."""
    times = [time_to_target(baseline, method, score, axis, bootstrap)]
    for prompt in prompts if len(prompts) > 1 else ():
        base, other = ([run for run in runs if run.prompt == prompt] for runs in (baseline, method))
        times.append(time_to_target(base, other, score, axis, Bootstrap([*base, *other]), prompt))
    return [ratio for ratio in times if ratio]


def _final(runs: Sequence[RunRecord], score: str, bootstrap: Bootstrap) -> Final | None:
    series = [run.series(score, "steps") for run in runs]
    if any(len(y) == 0 for _, y in series):
        return None
    last = np.array([[y[-1]] for _, y in series])
    low, high = (float(end[0]) for end in bootstrap.interval(runs, last))
    seconds = [run.axes["seconds"][-1] if "seconds" in run.axes else math.nan for run in runs]
    steps = [run.axes["steps"][-1] for run in runs]
    mean = float(last.mean())
    return Final(
        score, runs[0].method, mean, low, high, len(runs), float(np.mean(steps)), float(np.mean(seconds)),
        independent(runs),
    )  # fmt: skip


def _varies(runs: Sequence[RunRecord], name: str) -> bool:
    values = np.concatenate([run.metrics[name] for run in runs if name in run.metrics])
    values = values[np.isfinite(values)]
    return bool(len(values)) and bool(values.max() > values.min())


def write_tables(folder: Path, comparison: Comparison) -> list[Path]:
    """curves.csv, time_to_target.csv, final.csv and runs.csv in `folder`.

    An empty cell is a value that is not known; inf in time_to_target.csv is a target that was never reached.
    """
    curve_rows = (
        (metric, axis, c.method, c.runs, c.independent, *point)
        for (metric, axis), curves in comparison.curves.items()
        for c in curves
        for point in zip(c.x, c.mean, c.low, c.high)
    )
    runs = ((r.method, r.prompt, r.seed, str(r.folder), int(r.axes["steps"][-1])) for r in comparison.runs)
    tables: dict[str, tuple[Sequence[str], Iterable[Sequence[object]]]] = {
        "curves.csv": (("metric", "axis", "method", "runs", "independent", "x", "mean", "low", "high"), curve_rows),
        "time_to_target.csv": ([f.name for f in fields(TimeToTarget)], map(astuple, comparison.times)),
        "final.csv": ([f.name for f in fields(Final)], map(astuple, comparison.finals)),
        "runs.csv": (("method", "prompt", "seed", "folder", "steps"), runs),
    }
    for name, (head, rows) in tables.items():
        write_atomic(folder / name, csv_text(head, rows))
    return [folder / name for name in tables]
