"""The weights that are shipped: the classifier reads true renders, carv-tiny draws what it is asked for, and the
default settings make it into a scene. Floors well below what benchmarks/teacher.py and assets.py measure."""

import random
from pathlib import Path

import pytest
import torch
from agreement import agreement, combinations, draw_targets, predict, target_prompts, true_renders

from carv_3d.evaluation.truth import TrueShape, scoring_views
from carv_3d.generate.config import load_config
from carv_3d.generate.trainer import TextTo3D
from carv_3d.guidance.sampling import prompt_images
from carv_3d.teachers.families import BUILT_IN
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.tiny.classifier import Classifier
from carv_3d.tiny.dataset import draw_shots
from carv_3d.tiny.render import render

CONFIGS = Path(__file__).parents[2] / "carv_3d" / "configs"


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier.load()


def test_the_classifier_reads_true_renders(classifier: Classifier) -> None:
    rng = random.Random(1)
    targets = draw_targets(combinations(held_out=False), 100, rng) + draw_targets(combinations(held_out=True), 50, rng)
    shares = agreement(predict(classifier, true_renders(targets, rng)), targets)
    assert shares["object"] > 0.95
    assert shares["color"] > 0.97
    assert shares["view"] > 0.75


def test_carv_tiny_128_keeps_true_renders_at_twice_the_size_in_the_same_latents() -> None:
    teacher = StableDiffusionTeacher.load("carv-tiny-128", device="cpu", with_text=False)
    assert (teacher.image_size, teacher.latent_size, teacher.unet.config.in_channels) == (128, 16, 4)
    shots = draw_shots(200, seed=77)[::5]
    images = torch.from_numpy(render(shots, 128)[0]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        z = teacher.encode(images)
        error = (teacher.decode(z) - images).square().mean()
    assert 0.8 < float(z.std()) < 1.2
    assert float(-10 * error.log10()) > 25


def test_all_shipped_weights_are_small() -> None:
    size = sum(path.stat().st_size for folder in BUILT_IN.values() for path in folder.rglob("*"))
    assert size < 60e6


@pytest.mark.slow
@pytest.mark.parametrize("model", BUILT_IN)
@pytest.mark.parametrize("held_out", [False, True], ids=["training", "held out"])
def test_carv_tiny_draws_what_it_is_asked_for(held_out: bool, model: str, classifier: Classifier) -> None:
    teacher = StableDiffusionTeacher.load(model, device="cpu")
    targets = draw_targets(combinations(held_out), 20, random.Random(2))
    images = prompt_images(teacher, target_prompts(targets), 3.5, 30, 0).permute(0, 3, 1, 2)
    shares = agreement(predict(classifier, images), targets)
    assert shares["both"] >= 0.8
    shuffled = agreement(predict(classifier, images), targets[1:] + targets[:1])
    assert shuffled["both"] <= 0.2


@pytest.mark.slow
def test_the_quick_settings_come_nearer_to_the_true_shape() -> None:
    config = load_config(CONFIGS / "carv-tiny-quick.yaml", ["device=cpu", "trainer.max_steps=60"], "a red mug")
    host = TextTo3D(config)
    truth = TrueShape.from_prompt(config.prompt, config.data)
    before = truth.score(*scoring_views(host))["psnr"]
    for _ in range(60):
        host.train_step()
    after = truth.score(*scoring_views(host))
    assert after["psnr"] > before + 2
    assert after["iou"] > 0.75
    assert all(torch.isfinite(p).all() for p in host.field.parameters())
