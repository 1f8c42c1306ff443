"""A run of the built-in trainer in its folder: previews and outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carv_3d.config.reader import to_mapping
from carv_3d.config.request import GenerateRequest, ViewOptions
from carv_3d.core.batching import out_of_memory_as
from carv_3d.errors import CarvError
from carv_3d.evaluation.scoring import PromptClassifier
from carv_3d.evaluation.truth import TrueShape, scoring_views
from carv_3d.generate.config import config_to_yaml
from carv_3d.generate.request import resolve
from carv_3d.generate.trainer import PHASES, TextTo3D, check_prompt
from carv_3d.io.files import claimed
from carv_3d.io.images import contact_sheet, to_uint8, write_gif, write_mp4, write_png
from carv_3d.io.tables import read_metrics, seconds_in_all
from carv_3d.report.page import write_report
from carv_3d.runs.loggers import Logger, check_logger, make_logger
from carv_3d.runs.progress import Display, StopSignals, duration
from carv_3d.runs.run import Pace, Run
from carv_3d.tiny.knowledge import model_knowledge

if TYPE_CHECKING:
    from carv_3d.generate.live_view import LiveView

N_VIEWS = 8  # in preview.png and progress.png, and for the classifier
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
    "samples",
    "nonfinite",
    "skipped",
    "nfe",
    "renders",
    *(f"loss_{name}" for name in ("recon", "density", "opacity", "sparsity", "opaque", "orient", "tv")),
    "classifier_object",
    "classifier_color",
    "classifier_material",
    "iou",
    "psnr",
)


def generate(request: GenerateRequest, view: ViewOptions | None = None) -> int:
    """Do the run and return the exit status: 0 done, 128 + its number where a signal stopped it (it is then saved).

    view: serve the growing asset to a browser meanwhile.

    Raises:
        CarvError: whatever the user can mend; nothing that was there is written over.
    """
    display = Display()
    config, folder = resolve(request)
    check_prompt(config)
    check_logger(config.logger)
    display.say(f'"{config.prompt}" -> {folder}')
    with claimed(folder), _served(view, config.prompt, display) as live:  # before the model, maybe a long download
        stop = StopSignals(at_once=True)
        try:
            with stop, display.status("loading the model"), out_of_memory_as(ALL_TOO_LARGE):
                host = TextTo3D(config, log=display.say)
        except KeyboardInterrupt:
            display.say("Interrupted while the model was loaded; nothing was computed: give the same command again.")
            return stop.status
        run = SceneRun(host, folder, display)
        if live is not None:
            live.begin(host)
            run.watchers.append(partial(live.after_step, host))
        return run.complete(request.resume)


@contextmanager
def _served(view: ViewOptions | None, prompt: str, display: Display) -> Iterator[LiveView | None]:
    """The live view while it lasts, where one is asked for."""
    if view is None or not view.view:
        yield None
        return
    from carv_3d.generate.live_view import LiveView

    live = LiveView(view, prompt)
    display.say(f"Look: {live.address}")
    try:
        yield live
    finally:
        live.close()


class SceneRun(Run):
    """A run of a `TextTo3D`; `paced` is False where another object advances it, and its length is not in steps."""

    columns = COLUMNS
    command = "carv generate"
    steps_option = "trainer.max_steps"
    too_large = SCENE_TOO_LARGE

    def __init__(self, host: TextTo3D, folder: Path, display: Display, paced: bool = True) -> None:
        trainer, every = host.config.trainer, host.config.checkpoint.every_n_train_steps
        pace = Pace(trainer.max_steps, every, preview_steps=trainer.val_check_interval)
        super().__init__(host, folder, display, pace if paced else None)
        self.host = host
        self.classifier = PromptClassifier.for_prompt(host.config.prompt, host.device)

    @cached_property
    def truth(self) -> TrueShape | None:
        """The object that the prompt names, where the teacher is known to draw it; rendered at the first use."""
        config = self.host.config
        known = model_knowledge(config.system.guidance.pretrained_model_name_or_path).true_shapes
        return TrueShape.from_prompt(config.prompt, config.data) if known and self.classifier else None

    def config_text(self) -> str:
        """The configuration as YAML."""
        return config_to_yaml(self.host.config)

    def make_logger(self) -> Logger:
        """As the configuration says."""
        config = self.host.config
        return make_logger(config.logger, self.folder, self.host.step, to_mapping(config))

    def preview(self) -> dict[str, float]:
        """Write progress.png and return the classifier's score; after the last step also IoU and PSNR, if known."""
        data = self.host.config.data
        views = self.host.views(self.host.orbit(N_VIEWS), data.height, data.width)
        scale = max(1, round(128 / data.width))
        path = self.folder / "progress.png"
        write_png(path, contact_sheet(to_uint8(views), 4, scale=scale))
        self.logger.image(self.host.step, "progress", path)
        scores = self.classifier.score(views) if self.classifier else {}
        if self.host.step >= self.host.config.trainer.max_steps and self.truth:
            scores |= self.truth.score(*scoring_views(self.host))
        return scores

    def export(self) -> str:
        """Mesh, images, films and report; CarvError (after all else is written) where there is no mesh."""
        config, folder, data = self.host.config, self.folder, self.host.config.data
        problem: CarvError | None = None
        facts: dict[str, str] = {}
        asset = None
        with self.display.status("extracting the mesh"):
            try:
                asset, facts = self.export_mesh()
            except CarvError as error:
                problem = error
        with self.display.status("rendering the turntable"):
            turntable = self._shots(data.n_test_views, asset)
            if data.n_test_views % N_VIEWS:
                views = self._shots(N_VIEWS, asset)
            else:  # they are among the turntable's
                views = turntable[:: data.n_test_views // N_VIEWS]
            self.write_preview(views)
            write_gif(folder / "turntable.gif", turntable, FPS)
            try:
                write_mp4(folder / "turntable.mp4", turntable, FPS)
            except CarvError as error:
                self.display.say(f"Note: {error}")
        write_report(folder, to_mapping(config), self._facts() | facts)
        if problem:
            raise CarvError(f"{str(problem).rstrip('.')}; the images and the report are in {folder}")
        return f"Done: open {folder / 'report.html'}"

    def write_preview(self, views: Any) -> None:
        """Write preview.png of images (n, H, W, 3) uint8."""
        path = self.folder / "preview.png"
        write_png(path, contact_sheet(views, 4))
        self.logger.image(self.host.step, "preview", path)

    def _shots(self, n_views: int, asset: Any = None) -> Any:
        """Images (n, H, W, 3) uint8 around the asset; around the field where there is none."""
        from carv_3d.scenes.product_shot import product_shot

        data, cameras = self.host.config.data, self.host.orbit(n_views)
        size = data.eval_height, data.eval_width
        return to_uint8(product_shot(asset, cameras, *size) if asset is not None else self.host.views(cameras, *size))

    def export_mesh(self) -> tuple[Any, dict[str, str]]:
        """Write asset.glb and asset.obj; the textured mesh and its counts. CarvError where there is no surface."""
        from carv_3d.scenes.mesh import extract_mesh, save_asset
        from carv_3d.scenes.texture import textured

        field, options = self.host.field, self.host.config.system.exporter
        mesh = extract_mesh(field, options)
        asset = textured(field, mesh, options.texture_size)
        extras = {"prompt": self.host.config.prompt, "generator": "carv_3d"}
        save_asset(asset, self.folder, options.longest_side, extras)
        self.logger.mesh(self.host.step, asset, self.folder / "asset.glb")
        if not mesh.is_watertight:
            self.display.say("Note: the mesh is not closed; a larger system.exporter.resolution may help")
        closed = "yes" if mesh.is_watertight else "no"
        counts = {"vertices": f"{len(mesh.vertices):,}", "triangles": f"{len(mesh.faces):,}", "closed": closed}
        return asset, counts

    def _facts(self) -> dict[str, str]:
        config = self.host.config
        rows = read_metrics(self.metrics)
        facts = {
            "teacher": config.system.guidance.pretrained_model_name_or_path.rstrip("/").rpartition("/")[2],
            "steps": str(self.host.step),
            "of training": duration(seconds_in_all(rows)),
            "draws per render (K)": self._draws(),
            "denoised latents": f"{self.host.meter.nfe:,}",
            "seed": str(config.seed),
        }
        scores = [r["classifier_object"] for r in rows if math.isfinite(r.get("classifier_object", math.nan))]
        if scores:
            facts["the classifier: it is the object"] = f"{scores[-1]:.0%}"
        if rows and math.isfinite(rows[-1].get("iou", math.nan)):
            facts["silhouette IoU with the true object"] = f"{rows[-1]['iou']:.2f}"
        if rows and math.isfinite(rows[-1].get("psnr", math.nan)):
            facts["PSNR against the true object"] = f"{rows[-1]['psnr']:.1f} dB"
        return facts

    def _draws(self) -> str:
        auto = self.host.guidance.auto
        given = str(self.host.config.system.guidance.num_draws)
        return given if auto is None else f"{given}, {auto.num_draws} at the end"
