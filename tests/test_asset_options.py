"""`benchmarks/asset_options.py`: each change of the default alone, against the default."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import asset_options
import pytest
import torch
from assets import all_steps

from carv_3d.generate.config import load_config
from carv_3d.scenes.cameras import CameraOptions


@dataclass(frozen=True)
class Settings:
    """What the benchmark reads of a configuration."""

    trainer: Any
    data: CameraOptions


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
    asset_options.averaged(host, decay=0.5)
    expected = 0.0
    for value in (1, 2, 3, 4, 5):
        expected += 0.5 * (value - expected)
    assert host.step == 5
    assert host.field.value.item() == pytest.approx(expected)


def test_levels_come_one_after_another(host: Any) -> None:
    asset_options.coarse_to_fine(host, first=2, until=4)
    assert host.levels == [2, 3, 4, 5, 6]


def test_renders_grow_at_a_step(host: Any) -> None:
    asset_options.larger(host, size=128, begin=3)
    assert host.sizes == [64, 64, 64, 128, 128]


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
