"""`carv distill variance`: the variance of the generator's gradient, of a model or of a run, next to the paper's."""

from __future__ import annotations

from pathlib import Path

from carv_3d.distill.command import check_prompts, load_teacher
from carv_3d.distill.loop import Distillation
from carv_3d.distill.prompts import Prompts
from carv_3d.distill.request import Settings, model_name, read_distill_options, read_settings
from carv_3d.distill.variance import Setting, check_settings, read_setting, table_text, variance_table, write_csv
from carv_3d.distill.variance_request import VarianceRequest
from carv_3d.errors import CarvError
from carv_3d.io.files import expanded, folder_for, slug
from carv_3d.runs.checkpoint import load_checkpoint
from carv_3d.runs.progress import Display, StopSignals
from carv_3d.runs.request import new_folder
from carv_3d.teachers.families import BUILT_IN

# The options that the variance depends on; samples, draws and their design are the settings'.
COUNTING = (
    "guidance_scale", "objective", "min_step_percent", "max_step_percent", "prompts", "precision", "max_batch",
    "device", "seed",
)  # fmt: skip


def measure(request: VarianceRequest) -> int:
    """Measure, show and write variance.csv; returns 0, or 128 and the number of the signal that stopped it."""
    expected = [read_setting(text) for text in request.settings]
    check_settings(expected)
    settings = _settings(request)
    prompts = check_prompts(settings)
    default = Path("outputs") / f"distill-variance-{slug(model_name(request.model_or_run))}"
    folder = new_folder(request.out, default, "choose another --out")
    with folder_for(folder):
        return _measure(request, expected, settings, prompts, folder)


def _measure(
    request: VarianceRequest, expected: list[Setting], settings: Settings, prompts: Prompts, folder: Path
) -> int:
    display = Display()
    state = None
    if request.is_run:
        state, note = load_checkpoint(expanded(request.model_or_run) / "checkpoint")
        if note:
            display.say(f"Note: {note}.")
    with display.status("loading the model"):
        distillation = Distillation(load_teacher(settings), settings.options, prompts)
    if state is not None:
        distillation.load_networks(state)
    count = sum(p.numel() for p in distillation.generator.parameters())
    display.say(f"{model_name(request.model_or_run)} at step {distillation.step}: gradients of {count:,} numbers")
    with StopSignals() as stop, display.progress(0, request.pairs, "pair") as show:
        rows = variance_table(
            distillation,
            expected,
            request.pairs,
            request.budget,
            settings.options.seed,
            show=lambda done: show(done, {}),
            stopped=lambda: bool(stop.number),
        )
    if rows:
        for line in table_text(rows):  # shown first: it was measured, whatever the disk says
            display.say(line)
        write_csv(folder / "variance.csv", rows)
    if stop.number:
        kept = f"what was measured is in {folder}" if rows else "too little was measured for a figure"
        display.say(f"Stopped; {kept}.")
        return stop.status
    display.say(f"Done: {folder / 'variance.csv'}")
    return 0


def _settings(request: VarianceRequest) -> Settings:
    if not request.is_run:
        folder = expanded(request.model_or_run)
        if request.model_or_run not in BUILT_IN and folder.is_dir() and not (folder / "model_index.json").exists():
            raise CarvError(
                f"{request.model_or_run} is neither a run of carv distill (it has no config.yaml) nor a model (it "
                "has no model_index.json); name one of these, or carv-tiny"
            )
        options = read_distill_options(request.overrides, request.seed)
        for key in (word.partition("=")[0] for word in request.overrides):
            if key not in COUNTING:
                raise CarvError(
                    f"{key} does not count here: samples, draws and design are named by --settings, such as "
                    f"--settings 8x16+strat, and of the options there are {', '.join(COUNTING)}"
                )
        return Settings(request.model_or_run, options)
    if request.overrides or request.seed is not None:
        raise CarvError("key=value and --seed are for a model; a run has its own")
    return read_settings(expanded(request.model_or_run))
