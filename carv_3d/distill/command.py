"""`carv distill`: a run in its folder: steps, previews, checkpoints, and the finished model."""

from __future__ import annotations

import math
import shlex
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from carv_3d.core.batching import out_of_memory_as
from carv_3d.core.devices import choose_device
from carv_3d.core.seeds import seed_for
from carv_3d.distill.loop import PHASES, Distillation
from carv_3d.distill.options import DistillOptions
from carv_3d.distill.prompts import Prompts, read_prompts
from carv_3d.distill.ranks import Ranks, join
from carv_3d.distill.request import (
    DistillRequest,
    Settings,
    hash_of,
    latest_folder,
    read_distill_options,
    read_settings,
    resolve,
)
from carv_3d.errors import CarvError
from carv_3d.evaluation.scoring import PromptClassifier
from carv_3d.io.files import claimed, clear_half_written, make_folder, write_atomic
from carv_3d.io.tables import append_row, read_metrics, write_rows
from carv_3d.runs.checkpoint import resumed_state, save_checkpoint
from carv_3d.runs.progress import Display, StopSignals

# metrics.csv; an empty cell means that the step has no such figure.
COLUMNS = (
    "step", "seconds", *(f"seconds_{name}" for name in PHASES), "snr", "ess", "grad_norm", "latent_grad_norm",
    "grad_norm_fake", "loss_fake", "K", "rows", "max_batch", "nonfinite", "skipped", "nfe",
    "classifier_object", "classifier_color", "classifier_material",
)  # fmt: skip


def distill(request: DistillRequest) -> int:
    """Do the run and return the exit status: 0 done, 130 or 143 stopped (and saved) by a signal.

    Among several processes the first alone writes and speaks.

    Raises:
        CarvError: whatever the user can mend; nothing that was there is written over.
    """
    ranks = join(_on_cpu(request))
    try:
        return _distill(request, ranks)
    finally:
        ranks.close()


def _on_cpu(request: DistillRequest) -> bool:
    """Whether the request, or the run that it goes on with, says so, before the processes join."""
    base = read_settings(request.out or latest_folder(request)).options if request.resume else None
    return read_distill_options(request.overrides, request.seed, base).device == "cpu"


def _distill(request: DistillRequest, ranks: Ranks) -> int:
    asked = [resolve(request)] if ranks.first else []
    settings, folder = ranks.gather(asked)[0][0]
    display = Display(quiet=not ranks.first)
    prompts = check_prompts(settings)
    display.say(f"{settings.model} -> {folder}")
    with claimed(folder) if ranks.first else nullcontext():
        return _train(request, ranks, settings, folder, prompts, display)


def _train(
    request: DistillRequest, ranks: Ranks, settings: Settings, folder: Path, prompts: Prompts, display: Display
) -> int:
    with out_of_memory_as(too_large(settings)):
        with display.status("loading the model"):
            teacher = load_teacher(settings, ranks)
        run = DistillRun(Distillation(teacher, settings.options, prompts, ranks), settings, folder, display)
    run.open(request.resume)
    try:
        with out_of_memory_as(too_large(settings)):
            signal_number = run.train()
    except CarvError as error:
        raise CarvError(f"{str(error).rstrip('.')}; {run.kept()}") from error
    if signal_number:
        display.say(f"Stopped after step {run.one.step}. Go on with: {resume_command(folder)}")
        return 128 + signal_number
    if ranks.first:
        with display.status("writing the model"):
            run.export()
    ranks.gather(None)  # nobody leaves before it is written
    display.say(f"Done: the one-step model is in {folder / 'model'}")
    return 0


def too_large(settings: Settings) -> str:
    """What to say where memory runs out."""
    samples = f"batch_size={settings.options.batch_size} samples"
    return f"memory ran out on {samples}: lower batch_size, or set precision=bf16"


def check_prompts(settings: Settings) -> Prompts:
    """The prompts of a run; CarvError where there are none, or others than it began with, or no model: said before
    anything is loaded."""
    from carv_3d.teachers.availability import is_local, resolve_model

    if is_local(settings.model):  # a name that is misspelt has no prompts either
        resolve_model(settings.model)
    prompts = read_prompts(settings.options.prompts, settings.model)
    found = hash_of(prompts)
    if settings.prompts_hash not in ("", found):
        raise CarvError(
            f"{settings.options.prompts} holds other prompts than the run began with; put them back, or begin a new "
            "run with another --out"
        )
    settings.prompts_hash = found
    if not is_local(settings.model):  # which may download it
        resolve_model(settings.model)
    return prompts


def load_teacher(settings: Settings, ranks: Ranks | None = None) -> Any:
    """The teacher on its device; in half precision on CUDA, unless float32 is asked for.

    Raises CarvError as `load`, and where CUDA is asked for and absent, among several processes too.
    """
    from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher

    options = settings.options
    chosen = choose_device(options.device)
    own = None if ranks is None else ranks.device
    return StableDiffusionTeacher.load(
        settings.model,
        device=own or chosen,
        half_precision=False if options.precision == "float32" else None,
    )


def resume_command(folder: Path) -> str:
    """The command that goes on with the run in `folder`."""
    return f"carv distill --resume --out {shlex.quote(str(folder))}"


class DistillRun:
    """A distillation, its folder, and what is shown of it."""

    def __init__(self, one: Distillation, settings: Settings, folder: Path, display: Display) -> None:
        self.one, self.settings, self.folder, self.display = one, settings, folder, display
        self.checkpoint = folder / "checkpoint"
        self.metrics = folder / "metrics.csv"
        seed = torch.Generator().manual_seed(seed_for(self.options.seed, "preview prompts"))
        self.captions = one.prompts.first(self.options.preview_prompts, seed)
        self.classifiers = PromptClassifier.for_prompts(list(dict.fromkeys(self.captions)), one.device)
        self.saved_step: int | None = None
        self.last: dict[str, float] = {}

    @property
    def options(self) -> DistillOptions:
        """Of the run."""
        return self.settings.options

    def open(self, resume: bool) -> None:
        """Begin in the folder, or take up the run in it (and clear what a kill left half written).

        Raises CarvError, before anything is written, where the run cannot be taken up or is beyond its steps.
        """
        one, first = self.one, self.one.ranks.first
        if first:
            clear_half_written(self.folder)
        state = resumed_state(self.checkpoint, resume, self.display.say)
        if state is not None:
            one.load_state_dict(state)
            if self.options.steps < one.step:
                raise CarvError(
                    f"the run in {self.folder} is at step {one.step}, beyond steps = {self.options.steps}; give "
                    f"steps={one.step} or more, or none"
                )
            self.saved_step = one.step
            self.display.say(f"Resumed after step {one.step}.")
        one.ranks.gather(None)  # all have read before one writes
        if first:
            write_atomic(self.folder / "config.yaml", self.settings.to_yaml())
            write_rows(self.metrics, COLUMNS, read_metrics(self.metrics, one.step))

    def train(self) -> int:
        """All steps that are left; returns 0, or the number of the signal that stopped it after a step."""
        one, options, first = self.one, self.options, self.one.ranks.first
        if one.step >= options.steps:
            return 0
        saved = time.monotonic()
        with StopSignals() as stop, self.display.progress(one.step, options.steps) as show:
            while one.step < options.steps:
                row = one.train_step()
                due = first and time.monotonic() - saved >= options.save_every
                heard = one.ranks.gather([stop.number, due])  # all stop after the same step, and save together
                number = max(h[0] for h in heard)
                ended = one.step >= options.steps or bool(number)
                if first and (ended or one.step % options.preview_every == 0):
                    row |= self.preview()
                if first:
                    append_row(self.metrics, COLUMNS, row)
                if ended or any(h[1] for h in heard):
                    self.save()
                    saved = time.monotonic()
                self.last |= {k: v for k, v in row.items() if math.isfinite(v)}
                show(one.step, self.last)
                if number:
                    return int(number)
        return 0

    def preview(self) -> dict[str, float]:
        """Write previews/step-*.png, of the same prompts and noise every time; returns what the classifiers say of
        them."""
        from carv_3d.distill.evaluate import preview_sheet

        images = self.one.images(self.captions, seed=0)
        make_folder(self.folder / "previews")
        preview_sheet(images.cpu(), self.folder / "previews" / f"step-{self.one.step:05d}.png", self.captions)
        scores: dict[str, list[float]] = {}
        for classifier, caption in zip(self.classifiers, dict.fromkeys(self.captions)):
            mine = [i for i, other in enumerate(self.captions) if other == caption]
            found = {} if classifier is None else classifier.score(images[mine].permute(0, 2, 3, 1))
            for name, value in found.items():
                scores.setdefault(name, []).append(value)
        return {name: sum(values) / len(values) for name, values in scores.items()}

    def save(self) -> None:
        """Write the checkpoint; CarvError where it cannot be written, and then the one before is intact."""
        state = self.one.state_dict()  # of all processes
        if self.one.ranks.first:
            save_checkpoint(self.checkpoint, state)
        self.saved_step = self.one.step

    def kept(self) -> str:
        """What is safe after a failure, and how to go on, for the end of a sentence."""
        if self.saved_step is None:
            return f"no checkpoint was written yet in {self.folder}"
        return f"the checkpoint of step {self.saved_step} is intact, go on with: {resume_command(self.folder)}"

    def export(self) -> None:
        """The averaged generator as a diffusers folder."""
        from carv_3d.distill.export import save_one_step
        from carv_3d.teachers.availability import resolve_model

        save_one_step(self.folder / "model", resolve_model(self.settings.model), self.one.averaged().unet)
