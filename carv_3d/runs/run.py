"""The life of a run in its folder: open or resume, train, save, export, and what is said at each end."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from carv_3d.core.batching import out_of_memory_as
from carv_3d.errors import CarvError
from carv_3d.io.files import clear_half_written, os_errors_explained, write_atomic
from carv_3d.io.tables import append_row, write_rows
from carv_3d.runs.checkpoint import BEGIN_AGAIN, has_checkpoint, resumed_state, save_checkpoint
from carv_3d.runs.kept_figures import kept_rows
from carv_3d.runs.loggers import Logger
from carv_3d.runs.names import CHECKPOINT, CONFIG, METRICS
from carv_3d.runs.progress import Display, StopSignals
from carv_3d.runs.ranks import Ranks

STAGE_SECONDS = 30.0  # of steps that are not saved, at most, when a preview begins


Watcher = Callable[[dict[str, float], Callable[[], bool]], None]
"""Called after each step with its figures; it may wait until its second argument says that the run is to stop."""


class Trainer(Protocol):
    """What a run trains: it knows nothing of folders."""

    step: int

    def train_step(self) -> dict[str, float]:
        """One step; its figures by name."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as tensors and primitives."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; CarvError where it does not fit."""
        ...


@dataclass(frozen=True)
class Pace:
    """How long a run is, and how often it is saved and shown.

    Args:
        steps: of the whole run.
        save_steps: between two checkpoints.
        save_seconds: between two checkpoints, where `save_steps` is None.
        preview_steps: between two previews; none without.
    """

    steps: int
    save_steps: int | None = None
    save_seconds: float = math.inf
    preview_steps: int | None = None


class Run:
    """One trainer's life in a folder. An application subclasses it and adds its config, previews and outputs.

    Several processes may share a run: the first alone writes and speaks, and all of them stop and save together.
    """

    columns: Sequence[str] = ()
    """Of metrics.csv; without any there is no such file."""
    command = "carv"
    """What resumes the run, such as "carv generate"."""
    steps_option = "steps"
    damaged_fix = BEGIN_AGAIN
    """What to do where no checkpoint can be read."""
    too_large = "memory ran out"
    """What is said where it does, and how to need less."""

    def __init__(
        self, trainer: Trainer, folder: Path, display: Display, pace: Pace | None = None, ranks: Ranks | None = None
    ) -> None:
        """pace: None for runs that are advanced from outside, and not by `train`."""
        self.trainer, self.folder, self.display, self.pace = trainer, folder, display, pace
        self.ranks = ranks or Ranks()
        self.checkpoint, self.metrics = folder / CHECKPOINT, folder / METRICS
        self.logger = Logger()
        self.watchers: list[Watcher] = []
        self.saved_step: int | None = None
        self.last: dict[str, float] = {}

    def config_text(self) -> str | None:
        """What config.yaml holds; None for no such file."""
        return None

    def preview(self) -> dict[str, float]:
        """Show how far the run is; returns what is measured on the preview."""
        return {}

    def make_logger(self) -> Logger:
        """Where figures go besides metrics.csv, once the run is open; CarvError where that cannot begin."""
        return Logger()

    def misfit(self, sentence: str) -> None:
        """Called where metrics.csv is not what the run left, before it is written anew; says so."""
        self.display.say(f"Note: {sentence}.")

    def saved(self) -> None:
        """Called after each checkpoint."""

    def export(self) -> str:
        """Write the outputs of a run that is done; returns the closing sentence."""
        return ""

    def complete(self, resume: bool) -> int:
        """The whole life of the run in a folder that is claimed.

        Returns:
            0, or 128 + the number of the signal that stopped it; it is then saved.

        Raises:
            CarvError: what the user can mend, ending in what is kept and how to resume.
        """
        self.open(resume)
        if self.ranks.first:
            self.logger = self.make_logger()
        stop = StopSignals(at_once=True)
        try:
            with self._explained():
                number = self.train()
            if number:
                self.display.say(f"Stopped after step {self.trainer.step}. Resume with: {self.resume_command}")
                return 128 + number
            with self._explained(), stop:
                sentence = self.export() if self.ranks.first else ""
        except KeyboardInterrupt:
            self.display.say(f"Interrupted; {self.kept()}.")
            return stop.status
        finally:
            self.logger.close()
        self.ranks.gather(None)  # nobody leaves before it is written
        if sentence:
            self.display.say(sentence)
        return 0

    def open(self, resume: bool) -> None:
        """Begin in the folder, or resume the run in it; what a kill left half written is removed.

        Raises:
            CarvError: before anything is written, where the run cannot be resumed or is past its last step.
        """
        if self.ranks.first:
            clear_half_written(self.folder)
        state = resumed_state(self.checkpoint, resume, self.display.say, self.damaged_fix)
        if state is not None:
            self.trainer.load_state_dict(state)
            self._check_length()
            self.saved_step = self.trainer.step
            self.display.say(f"Resumed after step {self.trainer.step}.")
        self.ranks.gather(None)  # all have read before one writes
        if not self.ranks.first:
            return
        rows = kept_rows(self.metrics, self.columns, self.trainer.step, self.misfit) if self.columns else []
        self._write_config()
        if self.columns:
            write_rows(self.metrics, self.columns, rows)

    def _write_config(self) -> None:
        config = self.config_text()
        if config is not None:
            write_atomic(self.folder / CONFIG, config)

    def _check_length(self) -> None:
        done = self.trainer.step
        if self.pace is not None and self.pace.steps < done:
            raise CarvError(
                f"the run in {self.folder} is at step {done}, beyond {self.steps_option} = {self.pace.steps}; give "
                f"{self.steps_option}={done} or more, or none"
            )

    def train(self) -> int:
        """All steps that are left; returns 0, or the number of the signal that stopped it after a step."""
        trainer, pace, first = self.trainer, self.pace, self.ranks.first
        assert pace is not None
        if trainer.step >= pace.steps:
            return 0
        saved = time.monotonic()
        with StopSignals() as stop, self.display.progress(trainer.step, pace.steps) as show:
            while trainer.step < pace.steps:
                row = trainer.train_step()
                for watch in self.watchers:
                    watch(row, lambda: bool(stop.number))
                answers = self.ranks.gather([stop.number, first and self._save_due(saved)])  # all stop and save alike
                number = max(a[0] for a in answers)
                ended = trainer.step >= pace.steps or bool(number)
                if first and (self._previews_at(trainer.step) or (number and pace.preview_steps)):
                    row |= self.preview()
                self.append(row)
                if ended or any(a[1] for a in answers):
                    self.save()
                    saved = time.monotonic()
                show(trainer.step, self.last)
                if number:
                    return int(number)
        return 0

    def _save_due(self, saved: float) -> bool:
        assert self.pace is not None
        unsaved = time.monotonic() - saved
        if unsaved >= STAGE_SECONDS and self._previews_at(self.trainer.step + 1):
            return True  # a preview may be long, and a kill in it is to cost its own step alone
        if self.pace.save_steps is not None:
            return self.trainer.step % self.pace.save_steps == 0
        return unsaved >= self.pace.save_seconds

    def _previews_at(self, step: int) -> bool:
        pace = self.pace
        return bool(pace and pace.preview_steps and (step >= pace.steps or step % pace.preview_steps == 0))

    def append(self, row: dict[str, float]) -> None:
        """Keep a step's figures: in metrics.csv, and the last finite ones for the display."""
        if self.columns and self.ranks.first:
            append_row(self.metrics, self.columns, row)
            if self.logger.keeps:
                self.logger.scalars(self.trainer.step, row)
        self.last |= {name: value for name, value in row.items() if math.isfinite(value)}

    def save(self) -> None:
        """Write the checkpoint; CarvError where it cannot be written, and then the one before is intact."""
        state = self.trainer.state_dict()  # of all processes
        if self.ranks.first:
            save_checkpoint(self.checkpoint, state)
            if self.config_text() is not None and not (self.folder / CONFIG).exists():
                self.display.say(f"Note: {self.folder / CONFIG} was gone, and is written anew.")
                self._write_config()
        self.saved_step = self.trainer.step
        self.saved()

    @property
    def resume_command(self) -> str:
        """The command that resumes the run."""
        return f"{self.command} --resume --out {shlex.quote(str(self.folder))}"

    def kept(self) -> str:
        """What is safe after a failure, and how to resume, for the end of a sentence."""
        if self.saved_step is None:
            return f"no checkpoint was written yet in {self.folder}"
        if not has_checkpoint(self.checkpoint):
            absent = f"the checkpoint of step {self.saved_step} is no longer in {self.folder}"
            return f"{absent}; if the folder was moved, name its new place: {self.command} --resume --out FOLDER"
        return f"the checkpoint of step {self.saved_step} is intact, resume with: {self.resume_command}"

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What the user can mend becomes one sentence that ends in what is kept."""
        try:
            with out_of_memory_as(self.too_large), os_errors_explained():
                yield
        except CarvError as error:
            raise CarvError(f"{str(error).rstrip('.')}; {self.kept()}") from error
