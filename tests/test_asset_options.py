"""`benchmarks/asset_options.py`: each change of the default alone, against the default."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asset_changes
import asset_options
import pytest
import torch
from assets import all_steps
from tiny_host import tiny_config

from carv_3d.generate.config import load_config
from carv_3d.generate.trainer import TextTo3D
from carv_3d.scenes.cameras import CameraOptions, Cameras, orbit
from carv_3d.scenes.rendering import RenderOutput, ray_sphere


@dataclass(frozen=True)
class Settings:
    """What the benchmark reads of a configuration."""

    trainer: Any
    data: CameraOptions
    seed: int = 0


class Host:
    """A run of `steps` steps, each of which adds 1 to the only parameter."""

    def __init__(self, steps: int) -> None:
        self.step, self.levels, self.sizes = 0, list[int](), list[int]()
        parameter = torch.nn.Parameter(torch.zeros(1))
        self.field = SimpleNamespace(parameters=lambda: [parameter], active_levels=6, value=parameter)
        self.config = Settings(SimpleNamespace(max_steps=steps), CameraOptions())

    def train_step(self) -> None:
        self.levels.append(self.field.active_levels)
        self.sizes.append(self.config.data.width)
        with torch.no_grad():
            self.field.value += 1
        self.step += 1


@pytest.fixture
def host() -> Any:
    return Host(5)


def test_the_average_follows_the_parameters(host: Any) -> None:
    asset_changes.averaged(host, decay=0.5)
    expected = 0.0
    for value in (1, 2, 3, 4, 5):
        expected += 0.5 * (value - expected)
    assert host.step == 5
    assert host.field.value.item() == pytest.approx(expected)


def test_levels_come_one_after_another(host: Any) -> None:
    asset_changes.coarse_to_fine(host, first=2, until=4)
    assert host.levels == [2, 3, 4, 5, 6]


def test_renders_grow_at_a_step(host: Any) -> None:
    asset_changes.larger(host, size=128, begin=3)
    assert host.sizes == [64, 64, 64, 128, 128]


def ball(size: int) -> tuple[RenderOutput, Cameras]:
    """A white ball of radius 1/2 from in front, and a camera there."""
    cameras = orbit(1, distance=3.0, elevation=0.0)
    rays = cameras.rays(size, size)
    near, _, hit = ray_sphere(rays.origins.view(-1, 3), rays.directions.view(-1, 3), 0.5)
    depth, none = (near * hit).view(1, size, size, 1), torch.empty(0)
    opacity = hit.view(1, size, size, 1).float()
    return RenderOutput(torch.ones(1, size, size, 3), opacity, depth, *[none] * 7), cameras


def test_shading_is_lambertian_on_a_ball_and_none_around_it() -> None:
    out, cameras = ball(65)
    rays = cameras.rays(65, 65)
    points = rays.origins + out.depth * rays.directions
    normals = asset_changes.depth_normals(points)
    inside = (2 * points).norm(dim=-1) < 1.01
    inside &= (rays.directions * 2 * points).sum(-1) < -0.6  # away from the outline, where neighbors lie apart
    assert inside.sum() > 100
    assert (normals * 2 * points).sum(-1)[inside].min() > 0.99
    light = cameras.position[0]
    lit = asset_changes.shade(out, cameras, light).comp_rgb[0, ..., 0]
    assert lit[32, 32].item() == pytest.approx(1, abs=1e-3)
    assert lit[0, 0].item() == 1
    assert 0.8 < lit[32, 37].item() < 0.95
    behind = asset_changes.shade(out, cameras, -light).comp_rgb[0, ..., 0]
    assert behind[32, 32].item() == pytest.approx(asset_changes.AMBIENT, abs=1e-3)


def test_a_share_of_the_steps_is_shaded(monkeypatch: pytest.MonkeyPatch, host: Any) -> None:
    lit = list[bool]()
    host.config.trainer.max_steps, host.config = 200, replace(host.config, seed=1)
    cameras = orbit(1)
    host.render = render = lambda R, data: (False, cameras)
    host.train_step = lambda: (lit.append(host.render(None, None)[0]), setattr(host, "step", host.step + 1))
    monkeypatch.setattr(asset_changes, "shade", lambda out, cameras, light: True)
    asset_changes.shaded(host, share=0.3)
    assert 0.2 < sum(lit) / 200 < 0.4
    assert host.render is render


def test_the_best_seed_is_the_one_on_which_the_teacher_agrees(
    sd_folder: Path, sd_teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = TextTo3D(tiny_config(sd_folder), sd_teacher)
    scored = list[torch.Tensor]()

    def score(run: TextTo3D) -> float:
        scored.append(torch.cat([p.detach().flatten() for p in run.field.parameters()]))
        return [0.3, -0.1, 0.2][len(scored) - 1]

    monkeypatch.setattr(asset_changes, "disagreement", score)
    asset_changes.best_seed(host, runs=3)
    assert not torch.equal(scored[0], scored[1])
    assert torch.equal(torch.cat([p.detach().flatten() for p in host.field.parameters()]), scored[1])


def test_the_disagreement_is_the_error_that_the_text_adds(sd_folder: Path, sd_teacher: Any) -> None:
    host = TextTo3D(tiny_config(sd_folder), sd_teacher)
    value = asset_changes.disagreement(host)
    assert value == asset_changes.disagreement(host)
    assert value != 0
    text = host.view_text
    host.view_text = lambda cameras: (lambda c: c._replace(text=c.uncond, uncond=c.text))(text(cameras))
    assert asset_changes.disagreement(host) == pytest.approx(-value)


@pytest.mark.parametrize("name", list(asset_options.VARIANTS))
def test_each_variant_changes_the_default(name: str) -> None:
    variant = asset_options.VARIANTS[name]
    usual, changed = (load_config(overrides=list(o), prompt="a red mug") for o in ((), variant.overrides))
    assert (changed != usual or variant.train is not all_steps) == (name != "default")


def test_differences_are_of_the_same_object() -> None:
    usual = {"mug": {"psnr": 20.0, "iou": 0.8, "classifier": 1.0, "seconds": 30.0},
             "hat": {"psnr": 10.0, "iou": 0.6, "classifier": 0.5, "seconds": 20.0}}  # fmt: skip
    other = {obj: {**run, "psnr": run["psnr"] + more, "seconds": 40.0}
             for (obj, run), more in zip(reversed(usual.items()), (1.0, 3.0), strict=True)}  # fmt: skip
    lines = asset_options.table({"default": usual, "other": other})
    assert lines[0] == "| default | 15.00 | 0.700 | 0.750 | 1.00 |"
    assert lines[1] == "| other | 17.00 (+2.00 ± 1.00) | 0.700 (+0.000 ± 0.000) | 0.750 (+0.000 ± 0.000) | 1.67 |"
