"""Distillations compared: trained interleaved and evaluated at the same seconds of training time.

Every evaluation ends in a checkpoint, so that a comparison of hours can be stopped and resumed. Curves with bands over
seeds, against steps, NFE and seconds, are those of `carv_3d.compare`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from carv_3d.compare.plots import write_plots
from carv_3d.compare.records import RunRecord, columns
from carv_3d.compare.tables import Comparison, compare, write_tables
from carv_3d.core.estimator_names import estimator_options
from carv_3d.distill.loop import Distillation
from carv_3d.distill.options import DistillOptions
from carv_3d.errors import CarvError
from carv_3d.io.files import make_folder
from carv_3d.runs.checkpoint import has_checkpoint, load_checkpoint, module_fingerprint, save_checkpoint
from carv_3d.stats.bootstrap import Interval

AXES = ("steps", "nfe", "seconds")
#: What is compared by name: one independent draw a sample, as DMD has it, and sixteen.
METHODS: dict[str, dict[str, Any]] = {
    "K1": {"num_draws": 1, "stratify": "none"},
    "K16-independent": {"num_draws": 16, "stratify": "none"},
    "K16": {"num_draws": 16, **estimator_options("strat")},
    "K16-pairs": {"num_draws": 16, **estimator_options("strat+antithetic")},
}


class Trial:
    """One run of a method with one seed, in its folder.

    rows: a dict of figures for each reading so far: the axes, and what `evaluate` gave. readings: the seconds that each
    was asked for at, of which its row's are the first step's end.
    """

    def __init__(
        self,
        folder: Path,
        method: str,
        options: DistillOptions,
        build: Callable[[DistillOptions], Distillation],
        evaluate: Callable[[Distillation], dict[str, float]],
        made_with: str = "",
    ) -> None:
        """made_with: what else the figures depend on, in words. Raises CarvError for a folder with another run's."""
        self.folder, self.method, self.options = folder, method, options
        self.build, self.evaluate = build, evaluate
        self.made_with = {"options": {k: str(v) for k, v in asdict(options).items()}, "else": made_with}
        self.rows: list[dict[str, float]] = []
        self.readings: list[float] = []
        if has_checkpoint(folder / "checkpoint"):
            state, _ = load_checkpoint(folder / "checkpoint")
            if state["made_with"] != self.made_with or "readings" not in state:
                raise CarvError(f"{folder} holds a run with other options: choose another folder, or the same options")
            self.rows, self.readings = state["rows"], state["readings"]

    def check(self, readings: Sequence[float]) -> None:
        """Raises CarvError where a reading that was taken is none of these, or stands at other seconds."""
        same = all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(self.readings, readings))
        if not same or len(self.readings) > len(readings):
            raise CarvError(
                f"{self.folder} was read at other seconds: give the same --budget and --points, or another --work"
            )

    def advance(self, reading: int, seconds: float) -> bool:
        """Train until the seconds of its own steps come to `seconds`, evaluate, save; False where that was done.

        reading: the number of this reading, from 0. Evaluation, files and building count for nothing.
        Raises CarvError where that reading was taken at other seconds.
        """
        if len(self.rows) > reading:
            self.check([*self.readings[:reading], seconds, *self.readings[reading + 1 :]])
            return False
        distillation = self.build(self.options)
        clock = 0.0
        if self.rows:
            state, _ = load_checkpoint(self.folder / "checkpoint", resuming=True)
            distillation.load_state_dict(state["distillation"])
            clock = self.rows[-1]["seconds"]
        while clock < seconds:
            clock += distillation.train_step()["seconds"]
        axes = {
            "steps": float(distillation.step),
            "nfe": float(distillation.meter.nfe),
            "seconds": clock,
        }
        rows = [*self.rows, {**axes, **self.evaluate(distillation)}]
        make_folder(self.folder)
        readings = [*self.readings, float(seconds)]
        state = {"made_with": self.made_with, "rows": rows, "readings": readings}
        save_checkpoint(self.folder / "checkpoint", {**state, "distillation": distillation.state_dict()})
        self.rows, self.readings = rows, readings
        return True

    def record(self) -> RunRecord:
        """For `carv_3d.compare`; of no prompt, since a distillation is of many."""
        table = columns(self.rows)
        axes = {name: table.pop(name) for name in AXES}
        axes["steps"] = axes["steps"] - axes["steps"][0]  # of a run that it was started from
        return RunRecord(self.method, "", self.options.seed, self.folder, axes, table)


def make_trials(
    work: Path,
    methods: Sequence[str],
    seeds: int,
    base: DistillOptions,
    build: Callable[[DistillOptions], Distillation],
    evaluate: Callable[[Distillation], dict[str, float]],
    made_with: str = "",
) -> list[Trial]:
    """A trial of each method (a name of METHODS) for each seed from 0, in `work`/<method>-<seed>; `base` is the rest.

    Raises CarvError for an unknown method or no seed, and as `Trial`.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods or seeds < 1:
        which = f"the methods are {', '.join(methods) or 'none'} and the seeds {seeds}"
        raise CarvError(f"{which}; take at least one seed, and of the methods {', '.join(METHODS)}")
    return [
        Trial(work / f"{name}-{seed}", name, replace(base, seed=seed, **METHODS[name]), build, evaluate, made_with)
        for seed in range(seeds)
        for name in methods
    ]


def read_off(work: Path, trials: Sequence[Trial], score: str | None = None) -> Comparison:
    """The comparison of all trials, the first one's method the baseline; its tables and curves are written to `work`.

    score: a figure of which higher is better, for the ratios to reach the baseline's final one.
    """
    methods = list(dict.fromkeys(trial.method for trial in trials))
    comparison = compare([trial.record() for trial in trials], methods, [] if score is None else [score])
    write_tables(work, comparison)
    write_plots(work, comparison)
    return comparison


def run_trials(trials: Sequence[Trial], readings: Sequence[float], log: Callable[[str], None] = print) -> None:
    """Every trial to every reading (seconds of training time), interleaved: the first reading of all, then the second
    in the opposite order, so that what slows the machine slows all alike. Raises CarvError, before any of them is
    trained further, where one was read at other seconds."""
    for trial in trials:
        trial.check(readings)
    for i, seconds in enumerate(readings):
        for trial in trials if i % 2 == 0 else reversed(trials):
            if trial.advance(i, seconds):
                row = trial.rows[i]
                shown = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
                log(f"{trial.method}, seed {trial.options.seed}: {shown}")


def start_from(distillation: Distillation, state: dict[str, Any]) -> None:
    """Take the networks of another distillation's `state_dict`, and nothing else: optimizers and draws begin afresh.
    Raises CarvError where they do not fit."""
    own = copy.deepcopy({k: state.get(k) for k in ("generator", "fake", "average", "step")})  # it is used again
    distillation.load_networks(own)


def origin(state: dict[str, Any] | None, *weights: nn.Module) -> str:
    """What `start_from` began with, and the networks that figures depend on, to the bit: for a trial's `made_with`."""
    networks = () if state is None else (state["generator"], state["fake"], state["average"])
    tensors = [x for network in networks for x in network.values()]
    begun = "the teacher" if state is None else f"step {state['step']} of {module_fingerprint(nn.Module(), *tensors)}"
    return f"started from {begun}, with the weights {' '.join(map(module_fingerprint, weights))}"


def equal_table(comparison: Comparison, metrics: Sequence[str]) -> str:
    """Markdown: each method's mean and band at the largest seconds, and steps, that all of them reached."""
    lines = ["| | at | " + " | ".join(comparison.methods) + " |", "|---|---|" + "---|" * len(comparison.methods)]
    for name in metrics:
        for axis in ("seconds", "steps"):
            curves = {c.method: c for c in comparison.curves.get((name, axis), [])}
            if len(curves) < len(comparison.methods):
                continue
            at = min(float(c.x[-1]) for c in curves.values())
            cells = []
            for method in comparison.methods:
                c = curves[method]
                mean, low, high = (float(np.interp(at, c.x, y)) for y in (c.mean, c.low, c.high))
                cells.append(Interval(mean, low, high).text("#.3g"))
            lines.append(f"| {name} | {at:.4g} {axis} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
