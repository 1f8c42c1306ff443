"""Every option of the built-in trainer has an effect, or is tried elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_host import fingerprint, same, tiny_config

from carv_3d.config.reader import to_mapping
from carv_3d.generate.config import Config
from carv_3d.generate.trainer import TextTo3D
from carv_3d.report.page import flatten
from carv_3d.scenes.cameras import orbit


@pytest.fixture(scope="module")
def baseline(sd_folder: Path, sd_teacher: Any) -> dict[str, Any]:
    return fingerprint(tiny_config(sd_folder), sd_teacher)


def test_the_same_seed_gives_the_same_run(sd_folder: Path, sd_teacher: Any, baseline: dict[str, Any]) -> None:
    torch.rand(3)  # the global generator's state is of no account
    assert same(baseline, fingerprint(tiny_config(sd_folder), sd_teacher))


OPTIONS_WITH_AN_EFFECT = [
    "seed=1",
    "data.width=12",
    "data.height=12",
    "data.batch_size=2",
    "data.elevation_range=[0,1]",
    "data.azimuth_range=[0,1]",
    "data.camera_distance_range=[4,4]",
    "data.fovy_range=[60,60]",
    "data.camera_perturb=0.1",
    "data.center_perturb=0.1",
    "data.up_perturb=0.1",
    "data.progressive_until=100",
    "data.camera_sampling=low_discrepancy",
    "data.eval_width=12",
    "data.eval_height=12",
    "data.eval_elevation_deg=50",
    "data.eval_camera_distance=4",
    "data.eval_fovy_deg=60",
    "data.n_test_views=3",
    "system.geometry_type=hash",
    "system.geometry_type=fused",
    "system.geometry.resolution=9",
    "system.geometry.radius=0.9",
    "system.geometry.density_scale=5",
    "system.geometry.blob_scale=6",
    "system.geometry.blob_radius=0.4",
    "system.renderer.num_samples_per_ray=9",
    "system.renderer.eval_samples_per_ray=40",
    "system.renderer.randomized=false",
    "system.renderer.near_plane=2.5",
    "system.background.random_probability=0",
    "system.background.random_min=0",
    "system.background.random_tint=1",
    "system.prompt_processor.negative_prompt=ugly",
    "system.prompt_processor.view_dependent_prompting=false",
    "system.prompt_processor.fine_views=false",
    "system.prompt_processor.overhead_threshold=0",
    "system.guidance.guidance_scale=20",
    "system.guidance.cfg_convention=threestudio",
    "system.guidance.min_step_percent=0.3",
    "system.guidance.max_step_percent=0.3",
    "system.guidance.weighting_strategy=uniform",
    "system.guidance.grad_clip=0.01",
    "system.guidance.num_draws=4",
    "system.guidance.proposal=uniform",
    "system.guidance.proposal=adaptive",
    "system.guidance.stratify=none",
    "system.guidance.antithetic=true",
    "system.guidance.vae_sample=mode",
    "system.guidance.vae_sample=draw",
    "system.guidance.use_recon_loss=false",
    "system.guidance.seed=5",
    "system.guidance.sqrt_anneal=true",
    "system.guidance.objective=csd",
    "system.guidance.use_sjc=true",
    "system.guidance.use_img_loss=true",
    "system.loss.lambda_sds=2",
    "system.loss.lambda_recon=10",
    "system.loss.lambda_density=0",
    "system.loss.lambda_opacity=0",
    "system.loss.lambda_sparsity=10",
    "system.loss.lambda_opaque=100",
    "system.loss.lambda_orient=100",
    "system.loss.lambda_z_variance=100",
    "system.loss.lambda_distortion=100",
    "system.loss.lambda_tv=100",
    "system.optimizer.name=AdamW & system.optimizer.args.weight_decay=0.5",
    "system.optimizer.args.lr=0.01",
    "system.optimizer.args.betas=[0.5,0.5]",
    "system.optimizer.args.eps=1.0",
    "system.optimizer.args.weight_decay=0.5",
    "system.scheduler.name=constant",
    "system.scheduler.final_factor=0.01",
    "system.exporter.resolution=13",
    "system.exporter.level=3.0",
    "system.exporter.smoothing=0",
    "system.exporter.max_faces=100",
    "trainer.max_steps=8",
]


@pytest.mark.parametrize("overrides", OPTIONS_WITH_AN_EFFECT)
def test_the_option_has_an_effect(overrides: str, sd_folder: Path, sd_teacher: Any, baseline: dict[str, Any]) -> None:
    config = tiny_config(sd_folder, *overrides.split(" & "))
    assert not same(baseline, fingerprint(config, sd_teacher))


ONE_TIMESTEP = "system.guidance.min_step_percent=0.5 & system.guidance.max_step_percent=0.5"  # something to learn from
HASH = "system.geometry_type=hash & system.geometry.log2_hashmap_size=10"


GIVEN_ANOTHER = [
    (HASH, "system.geometry.n_levels=4"),
    (HASH, "system.geometry.n_features_per_level=4"),
    (HASH, "system.geometry.log2_hashmap_size=9"),
    (HASH, "system.geometry.base_resolution=8"),
    (HASH, "system.geometry.per_level_scale=2"),
    (HASH, "system.geometry.n_neurons=8"),
    (HASH, "system.geometry.n_hidden_layers=2"),
    ("data.batch_size=2", "data.batch_uniform_azimuth=false"),
    ("data.batch_size=2", "system.guidance.stratify=global"),
    ("system.guidance.use_sjc=true", "system.guidance.var_red=false"),
    ("system.prompt_processor.fine_views=false", "system.prompt_processor.use_perp_neg=true"),
    (ONE_TIMESTEP, "system.guidance.control_variate=true"),
    ("system.guidance.use_img_loss=true", "system.loss.lambda_sds_img=1"),
    ("system.guidance.sqrt_anneal=true", "system.guidance.trainer_max_steps=2"),
]


@pytest.mark.parametrize(("given", "option"), GIVEN_ANOTHER)
def test_the_option_has_an_effect_given_another(given: str, option: str, sd_folder: Path, sd_teacher: Any) -> None:
    result = fingerprint(tiny_config(sd_folder, *given.split(" & ")), sd_teacher)
    other = fingerprint(tiny_config(sd_folder, *given.split(" & "), option), sd_teacher)
    assert not same(result, other)


def test_the_prompt_has_an_effect(sd_folder: Path, sd_teacher: Any, baseline: dict[str, Any]) -> None:
    assert not same(baseline, fingerprint(tiny_config(sd_folder, prompt="b blue bottle"), sd_teacher))


CUT_UP = ["system.guidance.max_batch=1", "system.renderer.eval_chunk_rays=100", "system.renderer.grid_prune=false"]


@pytest.mark.parametrize("override", CUT_UP)
def test_how_work_is_cut_up_does_not_change_the_result(
    override: str, sd_folder: Path, sd_teacher: Any, baseline: dict[str, Any]
) -> None:
    other = fingerprint(tiny_config(sd_folder, override), sd_teacher)
    for name, value in baseline.items():
        torch.testing.assert_close(other[name], value, atol=2e-3, rtol=1e-3)


ELSEWHERE = {  # option -> where it is tried
    "device": "generate/test_config.py",
    "logger": "runs/test_loggers.py",
    "trainer.val_check_interval": "generate/test_run.py",
    "trainer.step_seconds": "generate/test_trainer_auto.py",
    "checkpoint.every_n_train_steps": "generate/test_run.py",
    "system.renderer.grid_resolution": "scenes/test_rendering.py",
    "system.renderer.prune_density_threshold": "scenes/test_rendering.py",
    "system.exporter.min_component": "scenes/test_mesh.py",
    "system.exporter.longest_side": "generate/test_run.py",
    "system.exporter.texture_size": "generate/test_scene_run.py",
    "system.guidance.half_precision_weights": "teachers/test_stable_diffusion.py",  # half_precision there
    "system.guidance.pretrained_model_name_or_path": "cli/test_cli.py",
    "system.guidance.model_config": "teachers/test_model_files.py",
    "system.guidance.vae": "teachers/test_model_files.py",
    "system.guidance.loras": "teachers/test_model_files.py",
    "system.prompt_processor.prompt": "generate/test_config.py",
    "system.prompt_processor.front_threshold": "generate/test_option_effects.py",
    "system.prompt_processor.back_threshold": "generate/test_option_effects.py",
}


def test_no_option_is_left_untried() -> None:
    words = [*OPTIONS_WITH_AN_EFFECT, *(option for _, option in GIVEN_ANOTHER), *CUT_UP]
    tried = {part.partition("=")[0] for word in words for part in word.split(" & ")}
    assert not tried & ELSEWHERE.keys()
    for name, file in ELSEWHERE.items():
        text = (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
        assert name.rpartition(".")[2].removesuffix("_weights") in text
    assert sorted(name for name, _ in flatten(to_mapping(Config()))) == sorted(tried | ELSEWHERE.keys())


@pytest.mark.parametrize("side", ["front", "back"])
def test_the_thresholds_of_the_coarse_phrases_are_read(side: str, sd_folder: Path, sd_teacher: Any) -> None:
    off = ["system.prompt_processor.fine_views=false", f"system.prompt_processor.{side}_threshold=1"]
    host = TextTo3D(tiny_config(sd_folder, *off, prompt="mug"), sd_teacher)
    start = 10.0 if side == "front" else 190.0
    text = host.view_text(orbit(1, elevation=10.0, start=start)).text
    assert torch.equal(text, sd_teacher.text_embeddings(["mug, side view"]))
