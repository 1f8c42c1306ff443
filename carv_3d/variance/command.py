"""`carv variance`: from a configuration or a run to tables and images of its estimators' variance."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from carv_3d.config.reader import to_mapping
from carv_3d.core.batching import out_of_memory_as
from carv_3d.errors import CarvError
from carv_3d.generate.config import Config, load_config
from carv_3d.generate.run import ALL_TOO_LARGE
from carv_3d.generate.trainer import TextTo3D, check_prompt
from carv_3d.io.files import check_unused, claimed, slug, write_atomic
from carv_3d.io.structured import read_json
from carv_3d.runs.checkpoint import load_checkpoint, save_checkpoint
from carv_3d.runs.progress import Display, StopSignals
from carv_3d.variance.figures import Row, Timesteps, rows, tight, timesteps
from carv_3d.variance.methods import DEFAULT, method
from carv_3d.variance.show import print_table, summary, table, write_csv, write_figures, write_timesteps
from carv_3d.variance.study import Block, Entry, Study

BASELINE = Entry(2, 1, method("uniform"))
FORMAT = 2


@dataclass
class VarianceRequest:
    """What `carv variance` was asked for. Raises CarvError, naming the option, for a value that cannot be meant."""

    source: Path
    prompt: str | None = None
    at: Sequence[int] = ()
    R: Sequence[int] = (1,)
    K: Sequence[int] = (1, 2, 4, 8)
    methods: Sequence[str] = DEFAULT
    budget: float = 600.0
    tolerance: float = 0.1
    seed: int | None = None
    out: Path | None = None
    resume: bool = False
    overrides: Sequence[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, values in (("R", self.R), ("K", self.K)):
            if not values or min(values) < 1 or max(values) > 1024:
                raise CarvError(f"--grid {name} is {list(values)}; give whole numbers from 1 to 1024.")
        if any(step < 0 for step in self.at):
            raise CarvError(f"--at is {list(self.at)}; steps are at least 0.")
        if not 0 < self.budget < float("inf"):
            raise CarvError(f"--budget is {self.budget:g}; give seconds above 0.")
        if not 0 < self.tolerance < 1:
            raise CarvError(f"--tolerance is {self.tolerance:g}; it is a share, such as 0.1.")

    def entries(self) -> list[Entry]:
        """The baseline first; odd K are left out for pairs, and R = 1 for cameras in a sequence: one such camera is as
        any random one, and R of them in a step are what R steps of one have. Raises CarvError where a method is left
        with none."""
        out = [BASELINE]
        for one in map(method, dict.fromkeys(self.methods)):
            least = 2 if one.upstream[0] else 1
            places = [(R, K) for R in self.R for K in self.K if least <= R and not (one.antithetic and K % 2)]
            if not places and max(self.R) < least:
                raise CarvError(f"the method {one.name} spreads the cameras of a step: give --grid an R from 2.")
            if not places:
                raise CarvError(f"the method {one.name} draws in pairs: give --grid an even K.")
            out += [Entry(R, K, one) for R, K in places]
        return list({e.key: e for e in out}.values())


def run(request: VarianceRequest, teacher: Any = None, display: Display | None = None) -> int:
    """Measure, show and write; returns 0, or 128 and the number of the signal that stopped it."""
    display = display or Display()
    entries = request.entries()
    config, state = read_source(request)
    points = sorted(set(request.at)) or ([state["step"]] if state else early_middle_late(config))
    if request.at and points[-1] > config.trainer.max_steps:
        raise CarvError(f"--at {points[-1]} is past the run's end; trainer.max_steps is {config.trainer.max_steps}.")
    check_prompt(config)
    folder = request.out or Path("outputs") / f"variance-{slug(config.prompt)}"
    asked = {"format": FORMAT, "config": to_mapping(config), "entries": [e.key for e in entries], "points": points}
    if not request.resume:
        check_unused(folder, "choose another --out, or go on in it with --resume")
    with claimed(folder):
        blocks = open_folder(folder, asked, request.resume)
        with display.status("loading the model"), out_of_memory_as(ALL_TOO_LARGE):
            host = TextTo3D(config, teacher, log=display.say)
        return _measure_points(request, host, points, state, folder, asked, blocks, entries, display)


def _measure_points(
    request: VarianceRequest,
    host: TextTo3D,
    points: Sequence[int],
    state: dict[str, Any] | None,
    folder: Path,
    asked: dict[str, Any],
    blocks: dict[int, list[Block]],
    entries: Sequence[Entry],
    display: Display,
) -> int:
    found: list[Row] = []
    by_t: dict[int, Timesteps] = {}
    with StopSignals() as stop:
        for i, step in enumerate(points):
            go_to(host, step, state, folder / f"scene-{step}", display, lambda: bool(stop.number))
            if stop.number:
                break
            study = Study(host, entries, seed=host.config.seed)
            mine = blocks.setdefault(step, [])

            def save() -> None:
                kept = {str(k): [asdict(b) for b in v] for k, v in blocks.items()}
                write_atomic(folder / "blocks.json", json.dumps({**asked, "blocks": kept}))

            # what earlier points left over is this one's too; what was measured of later ones before is not its cost
            left = request.budget * (i + 1) / len(points) - spent({s: blocks[s] for s in points[: i + 1]})
            measure(study, mine, step, request.tolerance, left, save, display, lambda: bool(stop.number))
            if len(mine) < 2:
                break
            new = rows(step, entries, mine, BASELINE)
            found += new
            by_t[step] = by_timestep(host, mine)
            print_table(table(new, new[0]), display.console)
            for line in summary(new, new[0], by_t[step]):
                display.say(line)
            write_csv(folder / "variance.csv", found)
            if stop.number:
                break
        if found:
            write_figures(folder, found, by_t)
            write_timesteps(folder / "timesteps.csv", by_t)
    if stop.number:
        display.say(f"Stopped. Resume with the same command and --resume; what was measured is in {folder}")
        return 128 + stop.number
    display.say(f"Done: variance.csv and the images are in {folder}")
    return 0


def measure(
    study: Study,
    blocks: list[Block],
    step: int,
    tolerance: float,
    seconds: float,
    save: Callable[[], None],
    display: Display,
    stopped: Callable[[], bool] = lambda: False,
) -> list[Row]:
    """Append blocks until every ECM's interval is within the tolerance or `seconds` are spent; at least two."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    shown = (TextColumn("step {task.fields[step]}"), BarColumn(), TimeRemainingColumn())
    columns = (*shown, TextColumn("{task.fields[text]}"))
    found: list[Row] = []
    with Progress(*columns, console=display.console, disable=not display.console.is_terminal) as bar:
        task = bar.add_task("", total=max(seconds, 1e-9), step=step, text="first block")
        begin = time.perf_counter()
        while not stopped():
            enough = len(blocks) >= 2 and time.perf_counter() - begin >= seconds
            if len(blocks) >= 2:
                found = rows(step, study.entries, blocks, BASELINE)
                worst = max(row.precision for row in found)
                text = f"{len(blocks)} batches" + (
                    "" if math.isnan(worst) else f", widest ECM ± {worst:.0%} (expected {tolerance:.0%})"
                )
                bar.update(task, completed=time.perf_counter() - begin, text=text)
                if enough or tight(found, tolerance):
                    display.say(f"step {step}: {text}" + (", the time is up" if enough else ""))
                    break
            blocks.append(study.block(len(blocks)))
            save()
    return found


def spent(blocks: dict[int, list[Block]]) -> float:
    """Seconds that the blocks took."""
    return sum(b.seconds["all"]["step"] for of_point in blocks.values() for b in of_point)


def by_timestep(host: TextTo3D, blocks: Sequence[Block]) -> Timesteps:
    """The gradient's size by timestep where the host is."""
    schedule, options = host.teacher.schedule, host.guidance.options
    low, high = options.timestep_range(schedule.num_train_timesteps, host.now)
    return timesteps(blocks, options.weights(schedule), low, high)


def early_middle_late(config: Config) -> list[int]:
    """A tenth of the run, its half, and nine tenths."""
    return sorted({max(1, round(config.trainer.max_steps * share)) for share in (0.1, 0.5, 0.9)})


def read_source(request: VarianceRequest) -> tuple[Config, dict[str, Any] | None]:
    """(the configuration, and the newest checkpoint where the source is a run). CarvError for what is not there."""
    source = request.source
    if not source.exists():
        raise CarvError(f"there is no {source}; give a YAML file or the folder of a run.")
    path, state = source, None
    if source.is_dir():
        path = source / "config.yaml"
        if not path.exists():
            raise CarvError(f"{source} is no run of carv generate: it holds no config.yaml.")
        if request.prompt is not None:
            raise CarvError("--prompt is for a configuration; a run has its own.")
        if request.overrides or request.seed is not None:
            raise CarvError("--set and --seed are for a configuration; a run has its own.")
        state = load_checkpoint(source / "checkpoint")[0]
    config = load_config(path, request.overrides, request.prompt, request.seed)
    if not config.prompt.strip():
        raise CarvError(f'{source} has no prompt; give one, such as --prompt "a red mug".')
    return config, state


def open_folder(folder: Path, asked: dict[str, Any], resume: bool) -> dict[int, list[Block]]:
    """The blocks that are in the folder already; CarvError where it is in use, or what is there is of other figures."""
    path = folder / "blocks.json"
    if not resume:
        check_unused(folder, "choose another --out, or go on in it with --resume")
    if not resume or not path.exists():
        return {}
    kept = read_json(path, "choose another --out")
    try:
        out = {int(step): [Block(**b) for b in blocks] for step, blocks in kept.pop("blocks").items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CarvError(f"{path} is damaged; choose another --out.") from error
    if kept != json.loads(json.dumps(asked)):
        raise CarvError(f"{folder} holds figures of other settings; choose another --out, or give the same ones.")
    return out


def go_to(
    host: TextTo3D,
    step: int,
    state: dict[str, Any] | None,
    kept: Path,
    display: Display,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Bring the host to a step: from what is kept there, the run's checkpoint if it is not past it, or by training."""
    from rich.progress import Progress

    if kept.exists():
        host.load_state_dict(load_checkpoint(kept)[0])
        return
    if state is not None and host.step < state["step"] <= step:
        host.load_state_dict(state)
    with Progress(console=display.console, disable=not display.console.is_terminal) as bar:
        task = bar.add_task(f"training to step {step}", total=step, completed=host.step)
        while host.step < step and not stopped():
            host.train_step()
            bar.update(task, completed=host.step)
    if host.step == step:
        save_checkpoint(kept, host.state_dict())
