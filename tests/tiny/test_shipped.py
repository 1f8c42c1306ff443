"""The weights that are shipped: the judge reads true renders, carv-tiny draws what it is asked for, and the default
settings make it into a scene. Floors well below what benchmarks/teacher.py and assets.py measure."""

import random
from pathlib import Path

import pytest
import torch

from carv_3d.evaluation.truth import TrueShape, scoring_views
from carv_3d.generate.config import load_config
from carv_3d.generate.trainer import TextTo3D
from carv_3d.guidance.sampling import prompt_pictures
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.tiny.agreement import agreement, draw_wanted, named, pairs, prompts_of, true_renders
from carv_3d.tiny.classifier import Judge

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


def test_the_judge_reads_true_renders(judge: Judge) -> None:
    rng = random.Random(1)
    wanted = draw_wanted(pairs(seen=True), 100, rng) + draw_wanted(pairs(seen=False), 50, rng)
    shares = agreement(named(judge, true_renders(wanted, rng)), wanted)
    assert shares["object"] > 0.95
    assert shares["colour"] > 0.97
    assert shares["view"] > 0.75


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "unseen"])
def test_carv_tiny_draws_what_it_is_asked_for(seen: bool, judge: Judge) -> None:
    teacher = StableDiffusionTeacher.load("carv-tiny", device="cpu")
    wanted = draw_wanted(pairs(seen), 20, random.Random(2))
    pictures = prompt_pictures(teacher, prompts_of(wanted), 3.5, 30, 0).permute(0, 3, 1, 2)
    shares = agreement(named(judge, pictures), wanted)
    assert shares["both"] >= 0.8
    shuffled = agreement(named(judge, pictures), wanted[1:] + wanted[:1])
    assert shuffled["both"] <= 0.2


def test_the_quick_settings_come_nearer_to_the_true_shape() -> None:
    config = load_config(CONFIGS / "carv-tiny-quick.yaml", ["device=cpu", "trainer.max_steps=60"], "a red mug")
    host = TextTo3D(config)
    truth = TrueShape.of_prompt(config.prompt, config.data)
    before = truth.score(*scoring_views(host))["psnr"]
    for _ in range(60):
        host.train_step()
    after = truth.score(*scoring_views(host))
    assert after["psnr"] > before + 2
    assert after["iou"] > 0.75
    assert torch.isfinite(host.field.grid).all()  # type: ignore[attr-defined]
