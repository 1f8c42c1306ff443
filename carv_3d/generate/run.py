"""A run of the embedded host in its folder: steps, previews, checkpoints, and the outputs."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from carv_3d.config.reader import to_mapping
from carv_3d.core.batching import out_of_memory_as
from carv_3d.errors import CarvError
from carv_3d.evaluation.scoring import PromptClassifier
from carv_3d.generate.config import config_to_yaml
from carv_3d.generate.request import Request, resolve
from carv_3d.generate.trainer import PHASES, TextTo3D, check_prompt
from carv_3d.io.files import claimed, clear_half_written, write_atomic, write_via
from carv_3d.io.images import contact_sheet, to_uint8, write_gif, write_mp4, write_png
from carv_3d.io.tables import append_row, read_metrics, write_rows
from carv_3d.report.page import write_report
from carv_3d.runs.checkpoint import resumed_state, save_checkpoint
from carv_3d.runs.progress import Display, StopSignals, duration

N_VIEWS = 8  # in preview.png and progress.png, and what the classifier sees
FPS = 16
SMALLER_SCENE = (
    "a smaller system.geometry.resolution (log2_hashmap_size for a hash grid), data.height and width, "
    "system.renderer.num_samples_per_ray or system.exporter.resolution"
)
SCENE_TOO_LARGE = f"memory ran out; take {SMALLER_SCENE}"
ALL_TOO_LARGE = (
    f"memory ran out; take a smaller model, or device=cpu where the GPU is too small for it, or {SMALLER_SCENE}"
)
# metrics.csv; an empty cell means that the step has no such figure.
COLUMNS = (
    "step",
    "seconds",
    *(f"seconds_{name}" for name in PHASES),
    "snr_step",
    "snr",
    "ess",
    "grad_norm",
    "opacity",
    "lr",
    "guidance_scale",
    "min_step",
    "max_step",
    "K",
    "K_auto",
    "R_auto",
    "upstream_share",
    "seconds_auto",
    "rows",
    "nonfinite",
    "skipped",
    "nfe",
    "renders",
    *(f"loss_{name}" for name in ("recon", "density", "opacity", "sparsity", "opaque", "orient", "tv")),
    "classifier_object",
    "classifier_color",
    "classifier_material",
)


def generate(request: Request) -> int:
    """Do the run and return the exit status: 0 done, 130 or 143 stopped (and saved) by a signal.

    Raises:
        CarvError: whatever the user can mend; nothing that was there is written over.
    """
    display = Display()
    config, folder = resolve(request)
    check_prompt(config)
    display.say(f'"{config.prompt}" -> {folder}')
    with claimed(folder):  # before the model, which may be a long download
        with display.status("loading the model"), out_of_memory_as(ALL_TOO_LARGE):
            host = TextTo3D(config, log=display.say)
        run = Run(host, folder, display)
        run.open(request.resume)
        try:
            with out_of_memory_as(SCENE_TOO_LARGE):
                signal_number = run.train()
        except CarvError as error:
            raise CarvError(f"{str(error).rstrip('.')}; {run.kept()}") from error
        if signal_number:
            display.say(f"Stopped after step {host.step}. Go on with: {resume_command(folder)}")
            return 128 + signal_number
        with out_of_memory_as(SCENE_TOO_LARGE):
            run.export()
    display.say(f"Done: open {folder / 'report.html'}")
    return 0


def resume_command(folder: Path) -> str:
    """The command that goes on with the run in `folder`."""
    return f"carv generate --resume --out {shlex.quote(str(folder))}"


class Run:
    """A host, its folder, and what is shown of it."""

    columns: Sequence[str] = COLUMNS  # of metrics.csv

    def __init__(self, host: TextTo3D, folder: Path, display: Display) -> None:
        self.host, self.folder, self.display = host, folder, display
        self.checkpoint = folder / "checkpoint"
        self.metrics = folder / "metrics.csv"
        self.classifier = PromptClassifier.for_prompt(host.config.prompt, host.device)
        self.saved_step: int | None = None
        self.last: dict[str, float] = {}

    def open(self, resume: bool) -> None:
        """Begin in the folder, or resume the run in it (and clear what a kill left half written).

        Raises:
            CarvError: before anything is written, where the run cannot be resumed or is beyond its steps.
        """
        clear_half_written(self.folder)
        state = resumed_state(self.checkpoint, resume, self.display.say)
        if state is not None:
            self.host.load_state_dict(state)
            total = self.host.config.trainer.max_steps
            if self.host.step > total:
                raise CarvError(
                    f"the run in {self.folder} is at step {self.host.step}, beyond trainer.max_steps = {total}; give "
                    f"trainer.max_steps={self.host.step} or more, or none"
                )
            self.saved_step = self.host.step
            self.display.say(f"Resumed after step {self.host.step}.")
        write_atomic(self.folder / "config.yaml", config_to_yaml(self.host.config))
        write_rows(self.metrics, self.columns, read_metrics(self.metrics, self.host.step))

    def train(self) -> int:
        """All steps that are left; returns 0, or the number of the signal that stopped it after a step."""
        host, config = self.host, self.host.config
        total = config.trainer.max_steps
        if host.step >= total:
            return 0
        with StopSignals() as stop, self.display.progress(host.step, total) as show:
            while host.step < total:
                row = host.train_step()
                ended = host.step == total or bool(stop.number)
                if ended or host.step % config.trainer.val_check_interval == 0:
                    row |= self.preview()
                self.append(row)
                if ended or host.step % config.checkpoint.every_n_train_steps == 0:
                    self.save()
                self.last |= {k: v for k, v in row.items() if math.isfinite(v)}
                show(host.step, self.last)
                if stop.number:
                    return stop.number
        return 0

    def preview(self) -> dict[str, float]:
        """Write progress.png and return the classifier's score, {} without a classifier."""
        data = self.host.config.data
        views = self.host.views(self.host.orbit(N_VIEWS), data.height, data.width)
        scale = max(1, round(128 / data.width))
        write_png(self.folder / "progress.png", contact_sheet(to_uint8(views), 4, scale=scale))
        return self.classifier.score(views) if self.classifier else {}

    def save(self) -> None:
        """Write the checkpoint; CarvError where it cannot be written, and then the one before is intact."""
        save_checkpoint(self.checkpoint, self.host.state_dict())
        self.saved_step = self.host.step

    def kept(self) -> str:
        """What is safe after a failure, and how to go on, for the end of a sentence."""
        if self.saved_step is None:
            return f"no checkpoint was written yet in {self.folder}"
        return f"the checkpoint of step {self.saved_step} is intact, go on with: {resume_command(self.folder)}"

    def export(self) -> None:
        """Mesh, images, films and report; CarvError (after all else is written) where there is no mesh."""
        host, config, folder = self.host, self.host.config, self.folder
        data = config.data
        problem: CarvError | None = None
        facts: dict[str, str] = {}
        with self.display.status("rendering the turntable"):
            turntable = to_uint8(host.views(host.orbit(data.n_test_views), data.eval_height, data.eval_width))
            if data.n_test_views % N_VIEWS:
                views = to_uint8(host.views(host.orbit(N_VIEWS), data.eval_height, data.eval_width))
            else:  # they are among the turntable's
                views = turntable[:: data.n_test_views // N_VIEWS]
            write_png(folder / "preview.png", contact_sheet(views, 4))
            write_gif(folder / "turntable.gif", turntable, FPS)
            try:
                write_mp4(folder / "turntable.mp4", turntable, FPS)
            except CarvError as error:
                self.display.say(f"Note: {error}")
        with self.display.status("extracting the mesh"):
            try:
                facts |= self.export_mesh()
            except CarvError as error:
                problem = error
        write_report(folder, to_mapping(config), self._facts() | facts)
        if problem:
            raise CarvError(f"{str(problem).rstrip('.')}; the images and the report are in {folder}")

    def export_mesh(self) -> dict[str, str]:
        """Write asset.glb and return its counts; CarvError where there is no surface."""
        from carv_3d.scenes.mesh import extract_mesh, save_mesh

        options = self.host.config.system.exporter
        mesh = extract_mesh(self.host.field, options)
        extras = {"prompt": self.host.config.prompt, "generator": "carv_3d"}
        write_via(
            self.folder / "asset.glb",
            lambda temporary: _none(save_mesh(mesh, temporary, options.longest_side, extras)),
        )
        if not mesh.is_watertight:
            self.display.say("Note: the mesh is not closed; a larger system.exporter.resolution may help")
        closed = "yes" if mesh.is_watertight else "no"
        return {"vertices": f"{len(mesh.vertices):,}", "triangles": f"{len(mesh.faces):,}", "closed": closed}

    def _facts(self) -> dict[str, str]:
        config = self.host.config
        rows = read_metrics(self.metrics)
        facts = {
            "teacher": config.system.guidance.pretrained_model_name_or_path.rstrip("/").rpartition("/")[2],
            "steps": str(self.host.step),
            "of training": duration(sum(r["seconds"] for r in rows)),
            "draws per render (K)": self._draws(),
            "denoised latents": f"{self.host.meter.nfe:,}",
            "seed": str(config.seed),
        }
        scores = [r["classifier_object"] for r in rows if math.isfinite(r.get("classifier_object", math.nan))]
        if scores:
            facts["the classifier: it is the object"] = f"{scores[-1]:.0%}"
        return facts

    def _draws(self) -> str:
        auto = self.host.guidance.auto
        given = str(self.host.config.system.guidance.num_draws)
        return given if auto is None else f"{given}, {auto.num_draws} at the end"

    def append(self, row: dict[str, float]) -> None:
        """Add a row to metrics.csv."""
        append_row(self.metrics, self.columns, row)


def _none(_: Any) -> None:
    return None
