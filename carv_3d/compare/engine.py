"""Runs interleaved, in one process: whatever slows the machine down slows all methods alike."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path

from carv_3d.compare.scored_run import ScoredRun
from carv_3d.compare.sweep import Sweep
from carv_3d.core.devices import choose_device
from carv_3d.evaluation.clip import ClipScore, usual_clip
from carv_3d.generate.teachers import Teachers, process_teachers
from carv_3d.generate.trainer import TextTo3D
from carv_3d.io.files import locked, make_folder
from carv_3d.runs.progress import Display, StopSignals
from carv_3d.runs.ray_tasks import Tasks

RESUMED = "each run is saved at its last point, and the same command resumes it"
SLICE = 2.0  # seconds of a run's training time before the next one's turn


def warm_teachers(sweep: Sweep) -> Teachers:
    """This process's models, kept from one group to the next, after a first step of every method."""
    teachers = process_teachers()
    if not teachers.warm:
        warm_up(sweep, teachers)
        teachers.warm = True
    return teachers


def warm_up(sweep: Sweep, teachers: Teachers) -> None:
    """A step of each method: the first one loads and compiles, and must not count in anyone's training time."""
    for method in sweep.methods:
        config = sweep.configuration(method, 0, 0)
        TextTo3D(config, teachers.load(config)).train_step()


def run_here(sweep: Sweep, out: Path, display: Display) -> int:
    """All groups that are left, one after the other; returns 0, or the number of the signal that stopped it."""
    teachers = Teachers()
    with locked(out), StopSignals() as stop:
        with display.status("loading the model"):
            clip = sweep_clip(sweep, display)
            for method in sweep.methods:
                teachers.load(sweep.configuration(method, 0, 0))
        with display.status("warming up"):
            warm_up(sweep, teachers)
        groups, length = sweep.groups, sweep.length
        each = length.total * len(sweep.methods)
        before = (len(groups) - len(sweep.left(out))) * each
        unit = "second" if length.seconds is not None else "step"
        with display.progress(round(before), round(len(groups) * each), unit) as show:
            for group in sweep.left(out):
                start = before

                def shown(done: float, figures: dict[str, float], start: float = start) -> None:
                    show(round(start + done), figures)

                run_group(sweep, out, group, teachers, clip, display, shown, lambda: bool(stop.number))
                if stop.number:
                    return stop.number
                before += each
    return 0


def run_group(
    sweep: Sweep,
    out: Path,
    group: tuple[int, int],
    teachers: Teachers,
    clip: ClipScore | None,
    display: Display,
    show: Callable[[float, dict[str, float]], None] = lambda done, figures: None,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """All methods of one prompt and seed, interleaved: the next turn is that of the least training time.

    Runs that are done are left alone, others are begun or resumed at their last point.
    """
    with contextlib.ExitStack() as held:
        runs: list[ScoredRun] = []
        done_before = 0.0
        for method in sweep.methods:
            folder = sweep.folder(out, method, *group)
            make_folder(folder)
            held.enter_context(locked(folder))
            config = sweep.configuration(method, *group)
            run = ScoredRun(TextTo3D(config, teachers.load(config)), folder, display, sweep.run_length(method), clip)
            if run.result is not None:
                done_before += sweep.length.total
                continue
            run.begin(method.name)
            runs.append(run)
        turn = {id(run): i for i, run in enumerate(runs)}
        while going := [run for run in runs if not run.finished]:
            run = min(going, key=lambda r: (r.clock, turn[id(r)]))
            run.advance(SLICE)
            figures = {k: v for k, v in run.last.items() if k in ("iou", "classifier_object")}
            show(done_before + sum(min(r.done, r.length.total) for r in runs), figures)
            if stopped():
                for each in runs:
                    each.pause()
                return
        for run in runs:
            run.finish()


def group_tasks(sweep: Sweep, out: Path) -> Tasks:
    """The groups that are left, for Ray: every (prompt, seed) is a task, whose methods take turns on one worker."""
    left = sweep.left(out)
    done = len(sweep.groups) - len(left)
    return Tasks(functools.partial(run_task, sweep), left, done, "prompts x seeds", RESUMED)


def run_task(sweep: Sweep, out: Path, group: tuple[int, int], display: Display) -> dict[str, float]:
    """The runs of a group, on a worker of Ray; returns their last figures."""
    last: dict[str, float] = {}

    def show(done: float, figures: dict[str, float]) -> None:
        last.update(figures)

    run_group(sweep, out, group, warm_teachers(sweep), sweep_clip(sweep, Display(quiet=True)), display, show)
    return last


def sweep_clip(sweep: Sweep, display: Display) -> ClipScore | None:
    """The CLIP that was asked for, or the usual one where it is here; one sentence where there is none."""
    device = choose_device(sweep.configuration(sweep.methods[0], 0, 0).device)
    if sweep.clip is not None:
        return ClipScore(sweep.clip, device)
    clip, note = usual_clip(device)
    if note:
        display.say(note[0].upper() + note[1:] + ".")
    return clip
