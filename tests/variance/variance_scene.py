"""A small scene with an exact teacher, and batches that were made up."""

from __future__ import annotations

import torch

from carv_3d.generate.config import load_config
from carv_3d.generate.trainer import TextTo3D
from carv_3d.teachers.gaussian import GaussianTeacher
from carv_3d.variance.benchmark import Batch
from carv_3d.variance.methods import BASELINE, Setting, method

SMALL = [
    "data.width=8", "data.height=8", "system.geometry_type=voxel", "system.geometry.resolution=6",
    "system.renderer.num_samples_per_ray=6", "trainer.max_steps=20", "device=cpu",
    "system.guidance.pretrained_model_name_or_path=gaussian", "system.guidance.guidance_scale=3",
]  # fmt: skip


def teacher(components: int = 3) -> GaussianTeacher:
    means = torch.randn(components, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return GaussianTeacher(means, 0.4, names=["red", "green", "blue"][:components], image_size=8)


def small_trainer(*overrides: str, components: int = 3) -> TextTo3D:
    config = load_config(overrides=[*SMALL, "seed=0", *overrides], prompt="a red mug")
    return TextTo3D(config, teacher(components))


def setting(R: int, K: int, name: str) -> Setting:
    return Setting(R, K, method(name))


SETTINGS = [BASELINE, setting(1, 2, "uniform"), setting(1, 2, "is")]


def made_up(*v_in: tuple[float, float]) -> list[Batch]:
    """Batches of `SETTINGS`: V_in 8 of the baseline, and as given of the others; s_out2 is 1 at R = 2, else 2."""
    steps = {"2,1,uniform": 3.0, "1,2,uniform": 2.0, "1,2,is": 2.0}
    seconds = {key: {"step": s, "denoise": 1.0} for key, s in steps.items()} | {"all": {"step": 9.0}}
    return [
        Batch({"2,1,uniform": 8.0, "1,2,uniform": a, "1,2,is": b}, {"2,0,0": 1.0, "1,0,0": 2.0}, seconds, [])
        for a, b in v_in
    ]
