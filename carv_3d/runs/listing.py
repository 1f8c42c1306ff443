"""The runs below a folder: what each is of, how far it is, its score and its size; and how one is removed.

Nothing of a run is trusted: its files are read as any other's are, links are not followed, and only files that a run
writes are ever removed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from carv_3d.errors import CarvError, first_line
from carv_3d.io.files import explain_os_error, folder_bytes, locked
from carv_3d.io.structured import look_up, read_yaml
from carv_3d.io.tables import read_metrics
from carv_3d.runs.names import CHECKPOINT, CONFIG, METRICS, WANDB_ID, previous_path

State = Literal["running", "stopped", "done", "damaged"]
DEPTH = 4  # folders below the one that is named: a comparison's runs are at 3
PROMPTS = ("system.prompt_processor.prompt", "model")  # of carv generate, carv distill
STEPS = ("trainer.max_steps", "steps")
SCORES = {"psnr": "PSNR {:.1f} dB", "iou": "IoU {:.2f}", "classifier_object": "classifier {:.0%}"}  # the first counts
RESULT = "result.json"
OUTPUTS = ("report.html", "model", RESULT)  # written last, by carv generate, distill and compare
FILES = (
    CONFIG, METRICS, CHECKPOINT, previous_path(Path(CHECKPOINT)).name, "progress.png", "preview.png", "report.html",
    "asset.glb", "asset.obj", "asset.mtl", "asset.png", "turntable.gif", "turntable.mp4", RESULT, "method.json",
    WANDB_ID,
)  # fmt: skip


@dataclass(frozen=True)
class RunSummary:
    """One run, for a list.

    Attributes:
        folder: where it is.
        subject: its prompt, or the model that is distilled.
        step: the last one in metrics.csv.
        steps: how many there are to be; None where config.yaml does not say.
        state: running while a process holds the folder; damaged where its files cannot be read.
        score: in words, the last one that was logged; "" for none.
        size: bytes of its files.
        note: what is wrong with a damaged one.
    """

    folder: Path
    subject: str
    step: int
    steps: int | None
    state: State
    score: str
    size: int
    note: str = ""


def find_runs(folder: Path) -> list[RunSummary]:
    """The runs in `folder` and below, by their paths.

    Raises:
        CarvError: there is no such folder, or it cannot be read.
    """
    if not folder.is_dir():
        raise CarvError(f"there is no folder {folder}; name one with runs in it, such as outputs")
    try:
        runs = [read_summary(path) for path in sorted(_run_folders(folder, DEPTH))]
        return [run for run in runs if run.folder.exists()]
    except OSError as error:
        raise explain_os_error(error, folder, "read") from error


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        inside = list(entries)
    if any(entry.name in (CONFIG, CHECKPOINT, METRICS) and entry.is_file() for entry in inside):
        yield folder
    for entry in inside:
        if depth and not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
            with suppress(PermissionError, FileNotFoundError):  # another's, or removed meanwhile
                yield from _run_folders(Path(entry.path), depth - 1)


def read_summary(folder: Path, held: bool = False) -> RunSummary:
    """The run in `folder`; one that cannot be read is `damaged`, with the reason as its note.

    held: this process holds the folder, so no run is at work there.
    """
    size = folder_bytes(folder)
    try:
        config = read_yaml(folder / CONFIG, "")
        rows = read_metrics(folder / METRICS)
    except CarvError as error:
        at_work = not held and _is_at_work(folder)
        note = "" if at_work else first_line(error).rstrip("; ")
        return RunSummary(folder, "", 0, None, "running" if at_work else "damaged", "", size, note)
    subject, steps = _first(config, PROMPTS, str), _first(config, STEPS, int)
    step = int(max((row["step"] for row in rows if math.isfinite(row.get("step", math.nan))), default=0))
    if subject is None:
        note = f"{folder / CONFIG} names no prompt and no model"
        return RunSummary(folder, "", step, steps, "damaged", "", size, note)
    return RunSummary(folder, subject, step, steps, _state(folder, step, steps, held), _score(rows), size)


def _first(config: Any, names: tuple[str, ...], kind: type) -> Any:
    """The first of the options that is there and of its kind."""
    return next((value for name in names if type(value := look_up(config, name)) is kind), None)


def _state(folder: Path, step: int, steps: int | None, held: bool) -> State:
    if not held and _is_at_work(folder):
        return "running"
    made = {name for name in OUTPUTS if (folder / name).exists()}
    whole = step >= (steps or 0) or RESULT in made  # a comparison's run has its own length
    return "done" if made and whole else "stopped"


def _is_at_work(folder: Path) -> bool:
    try:
        with locked(folder, 0):
            return False
    except (CarvError, OSError):
        return True


def _score(rows: list[dict[str, float]]) -> str:
    last = {name: value for row in rows for name, value in row.items() if math.isfinite(value)}
    return next((words.format(last[name]) for name, words in SCORES.items() if name in last), "")


def remove_run(run: RunSummary) -> list[Path]:
    """Remove the files that a run writes, and its folder where nothing else is in it.

    Args:
        run: as it was listed. One that has been resumed since is another one than the user agreed to lose.

    Returns:
        What is left in the folder: files of others, and folders such as an exported model.

    Raises:
        CarvError: a run is at work there or was since it was listed, the folder is a link, or something cannot be
            removed.
    """
    folder = run.folder
    if folder.is_symlink():
        raise CarvError(f"{folder} is a link; remove what it leads to by hand")
    try:
        with locked(folder, fix="stop it with Ctrl-C, and clean again"):
            now = read_summary(folder, held=True)
            if (now.state, now.step) != (run.state, run.step):
                raise CarvError(
                    f"the run in {folder} is now {now.state} at step {now.step}, and was {run.state} at step "
                    f"{run.step} when it was listed; look at it with carv runs, and clean again"
                )
            for name in FILES:
                path = folder / name
                if path.is_symlink() or path.is_file():
                    path.unlink()
        left = sorted(folder.iterdir())
        if not left:
            folder.rmdir()
    except OSError as error:
        raise explain_os_error(error, folder, "remove") from error
    return left
