"""`carv distill`: a run in its folder: steps, previews, checkpoints, and the finished model."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from carv_3d.config.reader import to_mapping
from carv_3d.core.batching import out_of_memory_as
from carv_3d.core.devices import choose_device
from carv_3d.core.seeds import seed_for
from carv_3d.distill.loop import PHASES, Distillation, check_precision
from carv_3d.distill.prompts import Prompts, read_prompts
from carv_3d.distill.request import (
    DistillRequest,
    Settings,
    latest_folder,
    prompts_digest,
    read_distill_options,
    read_settings,
    resolve,
)
from carv_3d.errors import CarvError, printable
from carv_3d.evaluation.scoring import PromptClassifier
from carv_3d.guidance.self_test import warn_if_poor
from carv_3d.io.files import check_writable, claimed, make_folder
from carv_3d.runs.dry_run import print_costs
from carv_3d.runs.loggers import Logger, check_logger, make_logger
from carv_3d.runs.progress import Display
from carv_3d.runs.ranks import Ranks, join
from carv_3d.runs.run import Pace, Run
from carv_3d.teachers.families import STABLE_DIFFUSION

USE = "carv distill, which trains a UNet on one text encoder and exports it as a StableDiffusionPipeline,"

# metrics.csv; an empty cell means that the step has no such figure.
COLUMNS = (
    "step", "seconds", *(f"seconds_{name}" for name in PHASES), "snr", "ess", "grad_norm", "latent_grad_norm",
    "grad_norm_fake", "loss_fake", "K", "samples", "max_batch", "nonfinite", "skipped", "nfe",
    "classifier_object", "classifier_color", "classifier_material",
)  # fmt: skip


def distill(request: DistillRequest) -> int:
    """Do the run and return the exit status: 0 done, 128 + its number where a signal stopped it (it is then saved).

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
    """Whether the request, or the run that it resumes, is on the CPU; asked before the processes join."""
    base = read_settings(request.out or latest_folder(request)).options if request.resume else None
    return read_distill_options(request.overrides, request.seed, base).device == "cpu"


def _distill(request: DistillRequest, ranks: Ranks) -> int:
    asked = [resolve(request)] if ranks.first else []
    settings, folder = ranks.gather(asked)[0][0]
    display = Display(quiet=not ranks.first)
    prompts = check_prompts(settings)
    if ranks.first:
        check_logger(settings.options.logger)
    display.say(f"{settings.model} -> {folder}")
    with claimed(folder) if ranks.first else nullcontext():
        with display.status("loading the model"), out_of_memory_as(too_large(settings)):
            distillation = Distillation(load_teacher(settings, ranks), settings.options, prompts, ranks)
            run = DistillRun(distillation, settings, folder, display)
        return run.complete(request.resume)


def dry_run(request: DistillRequest) -> int:
    """Print settings, and the measured time and memory of a run; write nothing."""
    settings, folder = resolve(request)
    prompts = check_prompts(settings)
    check_writable(folder)
    print(settings.to_yaml(), end="")
    print(printable(f"# folder: {folder}"))
    with out_of_memory_as(too_large(settings)):
        distillation = Distillation(load_teacher(settings), settings.options, prompts)
        generator, steps = distillation.generator, settings.options.steps
        print_costs(distillation, "generator", generator, distillation.device, steps, lambda: "and the previews")
    return 0


def too_large(settings: Settings) -> str:
    """What to say where memory runs out."""
    samples = f"batch_size={settings.options.batch_size} samples"
    return f"memory ran out on {samples}: lower batch_size, or set precision=bf16"


def check_prompts(settings: Settings) -> Prompts:
    """The prompts of a run, checked before anything is loaded.

    Raises CarvError where there are none, or others than it began with, or no model.
    """
    from carv_3d.teachers.availability import is_local

    if is_local(settings.model):  # a name that is misspelt has no prompts either
        _check_model(settings.model)
    prompts = read_prompts(settings.options.prompts, settings.model)
    digest = prompts_digest(prompts)
    if settings.prompts_hash not in ("", digest):
        raise CarvError(
            f"{settings.options.prompts} holds other prompts than the run began with; put them back, or begin a new "
            "run with another --out"
        )
    settings.prompts_hash = digest
    if not is_local(settings.model):  # which may download it
        _check_model(settings.model)
    return prompts


def _check_model(name: str) -> None:
    """CarvError for a model of one file or of another family, or with the noise of flow matching or EDM."""
    from carv_3d.teachers.load import find_model
    from carv_3d.teachers.loading import load_schedule
    from carv_3d.teachers.single_file import single_file

    if single_file(name) is not None:
        raise CarvError(f"{name} is a single file, and {USE} copies parts of a model: name a diffusers folder.")
    family = load_schedule(find_model(name, only=STABLE_DIFFUSION, use=USE)[0]).family
    if family != "vp":
        raise CarvError(
            f"{name} was trained on the noise of {family}, and {USE} works with variance-preserving noise alone: name "
            "a model with a DDPM, DDIM or Euler scheduler."
        )


def load_teacher(settings: Settings, ranks: Ranks | None = None) -> Any:
    """The teacher on its device; in half precision on CUDA, unless float32 is asked for.

    Raises CarvError as `load`, and where CUDA is asked for and absent, among several processes too.
    """
    from carv_3d.teachers import load

    options = settings.options
    chosen = choose_device(options.device)
    device = (None if ranks is None else ranks.device) or chosen
    check_precision(options, device)
    teacher = load.load_teacher(
        settings.model,
        only=STABLE_DIFFUSION,
        use=USE,
        device=device,
        half_precision=False if options.precision == "float32" else None,
    )
    if ranks is None or ranks.first:
        warn_if_poor(teacher, settings.model)
    return teacher


class DistillRun(Run):
    """A distillation in its folder."""

    columns = COLUMNS
    command = "carv distill"

    def __init__(self, distillation: Distillation, settings: Settings, folder: Path, display: Display) -> None:
        options = settings.options
        pace = Pace(options.steps, save_seconds=options.save_every, preview_steps=options.preview_every)
        super().__init__(distillation, folder, display, pace, distillation.ranks)
        self.distillation, self.settings = distillation, settings
        self.too_large = too_large(settings)
        seed = torch.Generator().manual_seed(seed_for(options.seed, "preview prompts"))
        self.captions = distillation.prompts.first(options.preview_prompts, seed)
        self.classifiers = PromptClassifier.for_prompts(list(dict.fromkeys(self.captions)), distillation.device)

    def config_text(self) -> str:
        """The settings as YAML."""
        return self.settings.to_yaml()

    def make_logger(self) -> Logger:
        """As the options say."""
        options = self.settings.options
        return make_logger(options.logger, self.folder, self.distillation.step, to_mapping(options))

    def preview(self) -> dict[str, float]:
        """Write previews/step-*.png, of the same prompts and noise every time; returns the classifiers' scores."""
        from carv_3d.io.images import preview_sheet

        images = self.distillation.images(self.captions, seed=0)
        step = self.distillation.step
        path = self.folder / "previews" / f"step-{step:05d}.png"
        make_folder(path.parent)
        preview_sheet(images.cpu(), path, self.captions)
        self.logger.image(step, "preview", path)
        scores: dict[str, list[float]] = {}
        for classifier, caption in zip(self.classifiers, dict.fromkeys(self.captions)):
            index = [i for i, other in enumerate(self.captions) if other == caption]
            measured = {} if classifier is None else classifier.score(images[index].permute(0, 2, 3, 1))
            for name, value in measured.items():
                scores.setdefault(name, []).append(value)
        return {name: sum(values) / len(values) for name, values in scores.items()}

    def export(self) -> str:
        """The averaged generator as a diffusers folder."""
        from carv_3d.distill.export import save_one_step
        from carv_3d.teachers.availability import resolve_model

        with self.display.status("writing the model"):
            save_one_step(self.folder / "model", resolve_model(self.settings.model), self.distillation.averaged().unet)
        return f"Done: the one-step model is in {self.folder / 'model'}"
