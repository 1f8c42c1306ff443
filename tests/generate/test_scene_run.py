"""A run of the built-in trainer in its folder: what it is given, and what it says of itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_host import tiny_config

from carv_3d.errors import CarvError
from carv_3d.evaluation.truth import TrueShape
from carv_3d.generate.run import COLUMNS, SceneRun
from carv_3d.generate.trainer import TextTo3D
from carv_3d.io.tables import write_rows
from carv_3d.runs.progress import Display
from carv_3d.runs.run import Pace


@pytest.fixture
def run(sd_folder: Path, sd_teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SceneRun:
    monkeypatch.setattr("carv_3d.generate.run.PromptClassifier.for_prompt", lambda *_: None)
    words = ["trainer.max_steps=7", "trainer.val_check_interval=3", "checkpoint.every_n_train_steps=2", "seed=5"]
    words += ["system.exporter.longest_side=2", "system.exporter.texture_size=64"]
    host = TextTo3D(tiny_config(sd_folder, *words), sd_teacher)
    return SceneRun(host, tmp_path, Display(quiet=True))


def test_its_pace_is_the_options(run: SceneRun) -> None:
    assert run.pace == Pace(7, 2, preview_steps=3)
    assert SceneRun(run.host, run.folder, run.display, paced=False).pace is None


def test_its_facts_are_the_runs(run: SceneRun) -> None:
    run.host.step = 3
    run.host.meter.counts["nfe"] = 1234
    scores = ({}, {"classifier_object": 0.9}, {"classifier_object": 0.4})
    write_rows(run.metrics, COLUMNS, [{"step": i + 1, "seconds": 40.0, **score} for i, score in enumerate(scores)])
    facts = run._facts()
    assert facts["the classifier: it is the object"] == "40%"
    assert (facts["steps"], facts["draws per render (K)"], facts["denoised latents"], facts["seed"]) == (
        "3", "2", "1,234", "5",
    )  # fmt: skip
    assert facts["of training"] == "2 min 00 s"
    assert not any("true object" in name for name in facts)  # nothing is known of it
    write_rows(run.metrics, COLUMNS, [{"step": 1, "seconds": 40.0}, {"step": 2, "loss_recon": 1.0}])
    assert run._facts()["of training"] == "40 s"  # the empty cell counts as 0
    write_rows(run.metrics, COLUMNS, [{"step": 1, "seconds": 1.0, "iou": 0.834, "psnr": 19.26}])
    facts = run._facts()
    assert facts["silhouette IoU with the true object"] == "0.83"
    assert facts["PSNR against the true object"] == "19.3 dB"


def test_the_last_step_is_held_against_the_true_object(run: SceneRun, monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, Any] = {}
    monkeypatch.setattr("carv_3d.generate.run.model_knowledge", lambda name: SimpleNamespace(**known))
    shape = SimpleNamespace(score=lambda *views: {"iou": 0.5})
    monkeypatch.setattr(TrueShape, "from_prompt", lambda prompt, data: shape)
    run.classifier = SimpleNamespace(score=lambda views: {"classifier_object": 1.0})  # type: ignore[assignment]
    known["true_shapes"] = True
    assert run.preview() == {"classifier_object": 1.0}  # not the last
    run.host.step = 7
    assert run.preview() == {"classifier_object": 1.0, "iou": 0.5}
    del run.truth
    known["true_shapes"] = False
    assert run.preview() == {"classifier_object": 1.0}


def test_its_mesh_has_the_size_that_was_asked_for(run: SceneRun) -> None:
    import trimesh

    _, counts = run.export_mesh()
    mesh = trimesh.load(run.folder / "asset.glb", force="mesh")
    assert mesh.extents.max() == pytest.approx(2.0, abs=1e-3)
    assert counts["triangles"] == f"{len(mesh.faces):,}"
    assert int(counts["vertices"].replace(",", "")) < len(mesh.vertices)  # the file's are split at the seams
    assert mesh.visual.material.baseColorTexture.size == (64, 64)


def test_preview_and_turntable_show_the_asset_or_else_the_field(run: SceneRun, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[bool] = []
    real = SceneRun._shots

    def recorded(self: SceneRun, n_views: int, asset: Any) -> Any:
        shown.append(asset is not None)
        return real(self, n_views, asset)

    monkeypatch.setattr(SceneRun, "_shots", recorded)
    run.export()
    assert shown == [True, True]  # four views, then eight for the preview

    def no_surface() -> Any:
        raise CarvError("the field is empty")

    monkeypatch.setattr(run, "export_mesh", no_surface)
    with pytest.raises(CarvError, match="the field is empty; the images and the report are in"):
        run.export()
    assert shown[2:] == [False, False]
