"""A run of the built-in trainer small enough for a test, and what it comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from carv_3d.generate.config import Config, load_config
from carv_3d.generate.trainer import TextTo3D
from carv_3d.scenes.mesh import extract_mesh

TINY = [
    "device=cpu",
    "system.geometry_type=voxel",
    "system.geometry.resolution=8",
    "system.renderer.num_samples_per_ray=8",
    "system.exporter.resolution=12",
    "system.exporter.texture_size=16",
    "system.guidance.num_draws=2",
    "data.width=16",
    "data.height=16",
    "data.eval_width=16",
    "data.eval_height=16",
    "data.n_test_views=4",
    "trainer.max_steps=4",
    "trainer.val_check_interval=2",
    "checkpoint.every_n_train_steps=2",
]
PARSED = """seed: 7
data: {batch_size: 2}
system:
  guidance_type: stable-diffusion-guidance
  guidance: {guidance_scale: 100}
  prompt_processor: {prompt: a hamburger}
"""  # threestudio's configs/parsed.yaml


def tiny_config(folder: Path, *overrides: str, prompt: str = "a red mug", seed: int | None = None) -> Config:
    model = f"system.guidance.pretrained_model_name_or_path={folder}"
    return load_config(None, [*TINY, "system.guidance.antithetic=false", model, *overrides], prompt, seed)


def fingerprint(config: Config, teacher: Any, steps: int = 2) -> dict[str, Any]:
    """What a run comes to: the field, and what is shown and exported of it."""
    host = TextTo3D(config, teacher)
    metrics = [host.train_step() for _ in range(steps)]
    data = host.config.data
    out = {f"field.{name}": value.detach().clone() for name, value in host.field.named_parameters()}
    out["views"] = host.views(host.orbit(data.n_test_views), data.eval_height, data.eval_width)
    out["mesh"] = torch.from_numpy(extract_mesh(host.field, host.config.system.exporter).vertices.copy())
    out["losses"] = torch.tensor(sorted(v for m in metrics for k, v in m.items() if k.startswith("loss_")))
    return out


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
