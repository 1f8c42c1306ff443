"""A comparison that makes its runs: on this machine or on Ray, then the tables and the page."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from carv_3d.compare.request import CompareOptions
from carv_3d.compare.scored_run import RESULT
from carv_3d.compare.sweep import Sweep, check_runs, checked, describe, open_folder
from carv_3d.core.options import EngineOptions
from carv_3d.io.files import locked, slug
from carv_3d.io.structured import read_json
from carv_3d.runs.progress import Display
from carv_3d.runs.ray_tasks import check_engine, run_on_ray


def run_sweep(
    sweep: Sweep,
    compared: CompareOptions,
    where: EngineOptions,
    command: str = "",
    display: Display | None = None,
) -> int:
    """Make the runs that are left, then compare all; returns the exit status (130 or 143 where a signal stopped it).

    Raises:
        CarvError: before any work, for a bad option, an unknown prompt, or a folder that holds something else.
    """
    display = display or Display()
    sweep = checked(sweep)
    check_engine(where)
    out = compared.out or Path("outputs") / f"compare-{slug(sweep.prompts[0], 24)}-{_digest(sweep)}"
    sweep = open_folder(sweep, out)
    check_runs(sweep, out)
    count = len(sweep.prompts) * len(sweep.methods) * sweep.seeds
    length = f"{sweep.budget:g} s of training time" if sweep.budget else f"{sweep.steps} steps"
    display.say(f"{count} runs of {length} each -> {out}")
    if sweep.left(out):
        from carv_3d.compare import engine

        if where.engine == "ray":
            engine.sweep_clip(sweep, display)  # says where there is none, once
            stopped = run_on_ray(engine.group_tasks(sweep, out), out, display, where)
        else:
            stopped = engine.run_here(sweep, out, display)
        if stopped:
            display.say(f"Stopped. Resume with the same command{f': {command}' if command else ''}")
            return 128 + stopped
    _write(sweep, out, display, compared, command)
    return 0


def _write(sweep: Sweep, out: Path, display: Display, compared: CompareOptions, command: str) -> None:
    from carv_3d.compare.reading import read_run
    from carv_3d.compare.write import terminal_table, write_comparison

    folders = [sweep.folder(out, m, *group) for m in sweep.methods for group in sweep.groups]
    runs = [read_run(folder) for folder in folders]
    results = [read_json(folder / RESULT, "delete it, and the run is finished again") for folder in folders]
    for run, result in zip(runs, results):
        if "note" in result:
            run.notes.append(f"{run.method}, {run.prompt}, seed {run.seed}: no mesh ({result['note']})")
    length = f"{sweep.budget:g} s" if sweep.budget else f"{sweep.steps} steps"
    facts = [("each run's training time" if sweep.budget else "each run", length)]
    with locked(out), display.status("writing tables, images and the page"):
        comparison = write_comparison(out, runs, compared.baseline, compared.scores, command, facts)
    for line in [*terminal_table(comparison), f"Done: open {out / 'compare.html'}"]:
        display.say(line)


def _digest(sweep: Sweep) -> str:
    """Of what makes it this sweep, so that the same command finds its folder again."""
    what = describe(sweep)
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
