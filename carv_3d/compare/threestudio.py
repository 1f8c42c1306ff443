"""threestudio's trials: the CSV and TensorBoard logs that Lightning writes next to each other.

Scalars are logged as `train/<name>`; here they are `<name>`, as in a run of carv. A CSV has no clock: seconds are those
between TensorBoard's entries, with validation in them and without the pause before a resumed part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from carv_3d.compare.records import RunRecord, columns, is_step, method_settings
from carv_3d.errors import CarvError, install_command
from carv_3d.io.files import open_file
from carv_3d.io.structured import read_yaml, value_at
from carv_3d.io.tables import RENAMED, read_table
from carv_3d.report.page import flatten

# threestudio's own guidance counts nothing, but its cost is known: NFE for each render.
STOCK_NFE = {"stable-diffusion-guidance": 2, "deep-floyd-guidance": 2}
MOST_RENDERS = 2**20  # of a step that can be meant
LEAVE_OUT = "restore it or leave the run out"
CONFIG = Path("configs") / "parsed.yaml"
Rows = dict[int, dict[str, float]]


def is_trial(folder: Path) -> bool:
    """Whether `folder` is a threestudio trial (outputs/NAME/TAG@TIME)."""
    return any((folder / name).is_dir() for name in ("csv_logs", "tb_logs"))


def read_trial(folder: Path, method: str = "") -> RunRecord:
    """The run in a trial's folder; CarvError in one sentence where its logs cannot be read."""
    notes: list[str] = []
    merged, clock = _csv_rows(folder, notes), _event_rows(folder, notes)
    for step, values in clock.items():
        merged[step] = {**{k: v for k, v in values.items() if k != "seconds"}, **merged.get(step, {})}
        merged[step]["seconds"] = values["seconds"]
    if not merged:
        raise CarvError(f"the logs in {folder} are empty or truncated: no whole row is left; leave the run out")
    rows = [{"step": float(step), **merged[step]} for step in sorted(merged)]
    metrics = columns(rows)
    config = _config(folder)
    axes = {"steps": metrics.pop("step") + 1}  # Lightning counts from 0
    for name in ("seconds", "nfe", "renders"):
        if name in metrics:
            axes[name] = metrics.pop(name)
    _fill_counts(folder, axes, config, notes)
    if "seconds" not in axes:
        notes.append(f"{folder.name}: no clock in its logs, so it has no curve against seconds")
    prompt = _value(folder, config, "system.prompt_processor.prompt", str) or ""
    seed = _value(folder, config, "seed", int) or 0
    settings = method_settings(flatten(config))
    return RunRecord(method, prompt, seed, folder, axes, metrics, settings, notes)


def _csv_rows(folder: Path, notes: list[str]) -> Rows:
    """By step and name, over all parts of a run that was resumed: the later part counts."""
    rows: Rows = {}
    for path in sorted((folder / "csv_logs").glob("version_*/metrics.csv"), key=_version):
        listed, damaged = read_table(path, LEAVE_OUT)
        damaged += sum(not is_step(row["step"]) for row in listed if math.isfinite(row.get("step", math.nan)))
        if damaged:
            notes.append(f"{path}: {damaged} damaged line(s) left out")
        part: Rows = {}
        for row in listed:
            if not is_step(row.get("step", math.nan)):
                continue
            known = {_plain(k): v for k, v in row.items() if _is_figure(k) and math.isfinite(v)}
            if known:
                part.setdefault(int(row["step"]), {}).update(known)
        _join(rows, part)
    return rows


def _join(rows: Rows, part: Rows) -> None:
    """Put a later part of a run behind the earlier ones; what was done after its checkpoint is forgotten."""
    if part:
        first = min(part)
        for step in [s for s in rows if s >= first]:
            del rows[step]
        rows.update(part)


def _event_rows(folder: Path, notes: list[str]) -> Rows:
    """As `_csv_rows`, with `seconds` since the beginning; {} where there are no event files, or no tensorboard."""
    files = sorted((folder / "tb_logs").glob("version_*/events.out.tfevents.*"), key=_version)
    if not files:
        return {}
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    except ImportError:
        if (folder / "csv_logs").is_dir():
            sentence = f"its seconds are in TensorBoard's files, which need: {install_command('compare')}"
            notes.append(f"{folder.name}: {sentence}")
            return {}
        raise CarvError(
            f"{folder} has TensorBoard logs alone, and tensorboard is not installed: {install_command('compare')}"
        ) from None
    rows: Rows = {}
    for path in files:
        part: Rows = {}
        times: dict[int, float] = {}
        open_file(path, LEAVE_OUT).close()
        try:
            for event in EventFileLoader(str(path)).Load():
                for value in event.summary.value:
                    if _is_figure(value.tag) and is_step(event.step) and math.isfinite(event.wall_time):
                        part.setdefault(int(event.step), {})[_plain(value.tag)] = _scalar(value)
                        times[int(event.step)] = float(event.wall_time)
        except Exception as error:  # its reader raises kinds of its own for a truncated record
            notes.append(f"{path}: read up to where it is damaged ({type(error).__name__})")
        _add_clock(rows, part, times)
        _join(rows, part)
    return rows


def _add_clock(earlier: Rows, part: Rows, times: Mapping[int, float]) -> None:
    """Write `seconds` since the run's beginning into `part`.

    What passed before its first entry is taken as long as the same number of steps took later, so that neither
    starting up nor a pause counts.
    """
    if not times:
        return
    steps = sorted(times)
    first, last = steps[0], steps[-1]
    each = (times[last] - times[first]) / (last - first) if last > first else 0.0
    begun = max((s for s in earlier if s < first), default=-1)
    before = earlier[begun]["seconds"] if begun >= 0 else 0.0
    for step in steps:
        part[step]["seconds"] = before + each * (first - begun) + times[step] - times[first]


def _fill_counts(folder: Path, axes: dict[str, Any], config: Mapping[str, Any], notes: list[str]) -> None:
    """Renders and NFE of threestudio's own guidance, which logs neither, from its batch size."""
    data = config.get("data")
    if isinstance(data, Mapping) and isinstance(data.get("batch_size"), list):  # one for each stage of resolutions
        return
    batch = _value(folder, config, "data.batch_size", int)
    kind = _value(folder, config, "system.guidance_type", str) or ""
    if batch is None:
        return
    if not 1 <= batch <= MOST_RENDERS:
        due = f"it must be from 1 to {MOST_RENDERS}"
        raise CarvError(f"{folder / CONFIG}: data.batch_size is {batch}; {due}; {LEAVE_OUT}")
    axes.setdefault("renders", axes["steps"] * float(batch))
    perp_neg = _value(folder, config, "system.prompt_processor.use_perp_neg", bool) or False
    if kind in STOCK_NFE and not perp_neg and "nfe" not in axes:
        axes["nfe"] = axes["steps"] * float(batch * STOCK_NFE[kind])
        notes.append(f"{kind} logs no count: its NFE are {STOCK_NFE[kind]} for each of {batch} render(s) a step")


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    return read_yaml(path, LEAVE_OUT) if path.exists() else {}


def _value(folder: Path, config: Mapping[str, Any], dotted: str, kind: type) -> Any:
    return value_at(config, dotted, kind, str(folder / CONFIG), LEAVE_OUT)


def _is_figure(name: str) -> bool:
    return name not in ("step", "epoch", "hp_metric") and not name.startswith(("lr-", "train_params/"))


def _plain(name: str) -> str:
    plain = name.removeprefix("train/")
    return RENAMED.get(plain, plain)


def _scalar(value: Any) -> float:
    if value.HasField("tensor"):
        from tensorboard.util.tensor_util import make_ndarray

        array = np.asarray(make_ndarray(value.tensor)).reshape(-1)
        return float(array[0]) if array.size == 1 and array.dtype.kind in "fiu" else math.nan
    return float(value.simple_value)


def _version(path: Path) -> tuple[int, str]:
    number = path.parent.name.rpartition("_")[2]
    return (int(number) if number.isdigit() else 0, path.name)
