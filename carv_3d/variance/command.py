"""`carv variance`: from a configuration or a run to tables and images of its estimators' variance."""

from __future__ import annotations

import json
import math
import time
import typing
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from carv_3d.config.reader import to_mapping
from carv_3d.core.batching import out_of_memory_as
from carv_3d.errors import CarvError, first_line
from carv_3d.generate.config import Config, find_config, load_config, load_run
from carv_3d.generate.run import ALL_TOO_LARGE
from carv_3d.generate.trainer import TextTo3D, check_prompt
from carv_3d.io.files import check_unused, claimed, slug, write_atomic
from carv_3d.io.structured import conforms, read_json
from carv_3d.runs.checkpoint import load_checkpoint, save_checkpoint
from carv_3d.runs.names import CONFIG
from carv_3d.runs.progress import Display, StopSignals
from carv_3d.variance.benchmark import Batch, VarianceBenchmark
from carv_3d.variance.charts import write_charts
from carv_3d.variance.figures import Row, Timesteps, rows, tight, timesteps
from carv_3d.variance.methods import Setting
from carv_3d.variance.request import VarianceRequest
from carv_3d.variance.show import print_table, rich_table, summary, write_csv, write_timesteps

FORMAT = 3


class KeptBatches:
    """Batches by step of the run in a JSON file, with all that they depend on."""

    def __init__(self, path: Path, depends_on: dict[str, Any], settings: Sequence[Setting] = ()) -> None:
        """Reads what is there; CarvError where it depends on something else, or is damaged."""
        self.path, self.depends_on, self.settings = path, depends_on, settings
        self.by_step: dict[int, list[Batch]] = {}
        self.phases: set[frozenset[str]] = set()  # one, where all batches have the same
        if path.exists():
            self._read()

    def _read(self) -> None:
        kept = read_json(self.path, "choose another --out")
        batches = kept.pop("batches", None)
        if kept != json.loads(json.dumps(self.depends_on)):
            raise CarvError(f"{self.path} holds figures of other settings; choose another --out, or the same settings.")
        try:
            self.by_step = {int(step): [self._batch(b) for b in given] for step, given in batches.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CarvError(f"{self.path} is damaged ({first_line(error)}); choose another --out.") from error

    def _batch(self, given: dict[str, Any]) -> Batch:
        kinds = typing.get_type_hints(Batch)
        wrong = [name for name in kinds if not conforms(given[name], kinds[name])]
        if wrong or (self.settings and not given["norms"]):
            raise ValueError(f"a batch's {' and '.join(wrong) or 'norms'}")
        self.phases |= {frozenset(given["seconds"][s.key]) for s in self.settings}
        if len(self.phases) > 1:
            raise ValueError("phases that are not in every batch")
        amounts = [given["seconds"]["all"]["step"]]
        for s in self.settings:  # a KeyError for what is not there
            amounts += [given["v_in"][s.key], *(given["seconds"][s.key][phase] for phase in ("step", "denoise"))]
            amounts.append(abs(given["s_out2"][s.upstream]))
        if min(amounts) < 0:
            raise ValueError("a time or a variance below 0")
        return Batch(**given)

    def at(self, step: int) -> list[Batch]:
        """The batches of a step, to be appended to."""
        return self.by_step.setdefault(step, [])

    def save(self) -> None:
        """Write them all."""
        batches = {str(step): [asdict(b) for b in kept] for step, kept in self.by_step.items()}
        write_atomic(self.path, json.dumps({**self.depends_on, "batches": batches}))

    def seconds(self, steps: Sequence[int]) -> float:
        """What the batches of these steps took."""
        return sum(spent(self.by_step.get(step, [])) for step in steps)


def run(request: VarianceRequest, teacher: Any = None, display: Display | None = None) -> int:
    """Measure, show and write; returns 0, or 128 and the number of the signal that stopped it."""
    display = display or Display()
    settings = request.settings()
    config, state = read_source(request)
    steps = sorted(set(request.at)) or ([state["step"]] if state else early_middle_late(config))
    if request.at and steps[-1] > config.trainer.max_steps:
        raise CarvError(f"--at {steps[-1]} is past the run's end; trainer.max_steps is {config.trainer.max_steps}.")
    check_prompt(config)
    folder = request.out or Path("outputs") / f"variance-{slug(config.prompt)}"
    keys = [s.key for s in settings]
    depends_on = {"format": FORMAT, "config": to_mapping(config), "settings": keys, "steps": steps}
    if not request.resume:
        check_unused(folder, "choose another --out, or resume it with --resume")
    with claimed(folder):
        if (folder / "blocks.json").exists():
            raise CarvError(
                f"{folder} was measured by an older carv_3d, whose figures cannot be resumed; choose another --out."
            )
        kept = KeptBatches(folder / "batches.json", depends_on, settings)
        with display.status("loading the model"), out_of_memory_as(ALL_TOO_LARGE):
            trainer = TextTo3D(config, teacher, log=display.say)
        with StopSignals() as stop:
            measure_steps(request, trainer, state, steps, kept, display, lambda: bool(stop.number))
    if stop.number:
        display.say(f"Stopped. Resume with the same command and --resume; what was measured is in {folder}")
        return stop.status
    display.say(f"Done: variance.csv and the images are in {folder}")
    return 0


def measure_steps(
    request: VarianceRequest,
    trainer: TextTo3D,
    state: dict[str, Any] | None,
    steps: Sequence[int],
    kept: KeptBatches,
    display: Display,
    stopped: Callable[[], bool],
) -> None:
    """Measure at each step of the run, show its table, and write tables and images of all.

    `state` is the checkpoint of the run that is measured, if it is one. `stopped` is asked between batches.
    """
    folder, table, by_t = kept.path.parent, list[Row](), dict[int, Timesteps]()
    for i, step in enumerate(steps):
        go_to(trainer, step, state, folder / f"scene-{step}", display, stopped)
        if stopped():
            break
        benchmark = VarianceBenchmark(trainer, request.settings(), seed=trainer.config.seed)
        # what earlier steps left over is this one's too; what was measured of later ones before is not its cost
        left = request.budget * (i + 1) / len(steps) - kept.seconds(steps[: i + 1])
        batches = kept.at(step)
        measure(benchmark, batches, step, request.tolerance, left, kept.save, display, stopped)
        if len(batches) < 2:
            break
        step_rows = rows(step, benchmark.settings, batches)
        table += step_rows
        by_t[step] = by_timestep(trainer, batches)
        print_table(rich_table(step_rows), display.console)
        for line in summary(step_rows, by_t[step]):
            display.say(line)
        write_csv(folder / "variance.csv", table)
        if stopped():
            break
    if table:
        write_charts(folder, table, by_t)
        write_timesteps(folder / "timesteps.csv", by_t)


def measure(
    benchmark: VarianceBenchmark,
    batches: list[Batch],
    step: int,
    tolerance: float,
    seconds: float,
    save: Callable[[], None],
    display: Display,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Append batches until every ECM's interval is within the tolerance or `seconds` are spent; at least two."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    shown = (TextColumn("step {task.fields[step]}"), BarColumn(), TimeRemainingColumn())
    columns = (*shown, TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=display.console, disable=not display.console.is_terminal) as bar:
        task = bar.add_task("", total=max(seconds, 1e-9), step=step, text="first batch")
        begin = time.perf_counter()
        while not stopped():
            if len(batches) >= 2:
                time_is_up = time.perf_counter() - begin >= seconds
                table = rows(step, benchmark.settings, batches)
                widest = max(row.precision for row in table)
                text = f"{len(batches)} batches"
                if not math.isnan(widest):
                    text += f", widest ECM ± {widest:.0%} (aim {tolerance:.0%})"
                bar.update(task, completed=time.perf_counter() - begin, text=text)
                if time_is_up or tight(table, tolerance):
                    display.say(f"step {step}: {text}" + (", the time is up" if time_is_up else ""))
                    break
            batches.append(benchmark.batch(len(batches)))
            save()


def spent(batches: Sequence[Batch]) -> float:
    """Seconds that the batches took."""
    return sum(b.seconds["all"]["step"] for b in batches)


def by_timestep(trainer: TextTo3D, batches: Sequence[Batch]) -> Timesteps:
    """The gradient's size by timestep where the trainer is."""
    schedule, options = trainer.teacher.schedule, trainer.guidance.options
    low, high = options.timestep_range(schedule.num_train_timesteps, trainer.now)
    return timesteps(batches, options.weights(schedule), low, high)


def early_middle_late(config: Config) -> list[int]:
    """A tenth of the run, its half, and nine tenths."""
    return sorted({max(1, round(config.trainer.max_steps * share)) for share in (0.1, 0.5, 0.9)})


def read_source(request: VarianceRequest) -> tuple[Config, dict[str, Any] | None]:
    """(the configuration, and the newest checkpoint where the source is a run). CarvError for what is not there."""
    source = find_config(request.source)
    if not source.exists():
        raise CarvError(f"there is no {source}; give a YAML file or the folder of a run.")
    if not source.is_dir():
        config, state = load_config(source, request.overrides, request.prompt, request.seed), None
    else:
        if not (source / CONFIG).exists():
            raise CarvError(f"{source} is no run of carv generate: it holds no config.yaml.")
        if request.prompt:
            raise CarvError("--prompt is for a configuration; a run has its own.")
        if request.overrides or request.seed is not None:
            raise CarvError("key=value and --seed are for a configuration; a run has its own.")
        config, state = load_run(source), load_checkpoint(source / "checkpoint")[0]
    if not config.prompt.strip():
        raise CarvError(f'{source} has no prompt; give one, such as --prompt "a red mug".')
    return config, state


def go_to(
    trainer: TextTo3D,
    step: int,
    state: dict[str, Any] | None,
    kept: Path,
    display: Display,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Bring the trainer to a step.

    From the scene in `kept`, else from the run's checkpoint `state` if it is not past the step, else by training; the
    scene is then kept.
    """
    from rich.progress import Progress

    if kept.exists():
        trainer.load_state_dict(load_checkpoint(kept)[0])
        if trainer.step != step:
            raise CarvError(f"{kept} is of step {trainer.step} in place of {step}: delete it, and it is made anew.")
        return
    if state is not None and trainer.step < state["step"] <= step:
        trainer.load_state_dict(state)
    with Progress(console=display.console, disable=not display.console.is_terminal) as bar:
        task = bar.add_task(f"training to step {step}", total=step, completed=trainer.step)
        while trainer.step < step and not stopped():
            trainer.train_step()
            bar.update(task, completed=trainer.step)
    if trainer.step == step:
        save_checkpoint(kept, trainer.state_dict())
