"""A scene that no memory holds is refused before the model is loaded, with the option and the bytes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from carv_3d.core import memory
from carv_3d.errors import CarvError
from carv_3d.generate.config import load_config
from carv_3d.generate.needs import check_needs
from carv_3d.generate.trainer import TextTo3D

VOXELS = ["geometry_type=voxel", "system.geometry.resolution=1024"]
LARGE = ["geometry_type=hash", "log2_hashmap_size=28", "n_levels=32", "base_resolution=700", "per_level_scale=1.1"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (VOXELS, "system.geometry.resolution = 1024 takes at least 64.0 GiB (68,719,476,"),
        (["data.width=8192", "data.height=8192"], "data.batch_size x height x width = 1 x 8192 x 8192 rays of"),
        (["data.n_test_views=10000"], "data.n_test_views x eval_height x eval_width = 10000 x 192 x 192 takes"),
        (["system.exporter.resolution=1024"], "system.exporter.resolution = 1024 takes at least 28.0 GiB"),
        (LARGE, "system.geometry.log2_hashmap_size = 28 takes"),
    ],
)
def test_what_no_memory_holds_is_refused_with_its_bytes(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], sentence: str
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: 8 * 2**30)
    config = load_config(overrides=overrides)
    with pytest.raises(CarvError, match=f"^{re.escape(sentence)}.*8.0 GiB .*are free.*: lower it, or take a machine"):
        check_needs(config, torch.device("cpu"))


def test_the_default_scene_fits_into_two_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: 2**31)
    for name in ("carv-tiny", "carv-tiny-hash-grid", "stable-diffusion"):
        check_needs(load_config(Path(name)), torch.device("cpu"))


def test_auto_is_what_it_will_be_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: 8 * 2**30)
    check_needs(load_config(overrides=["geometry.resolution=1024"]), torch.device("cpu"))  # of no voxel grid here
    with pytest.raises(CarvError, match="log2_hashmap_size = 28 takes"):
        check_needs(load_config(overrides=LARGE[1:]), torch.device("cpu"))
    monkeypatch.setattr("carv_3d.generate.needs.fastest_field", lambda device: ("voxel", "of a test"))
    with pytest.raises(CarvError, match=r"geometry\.resolution = 1024 takes"):
        check_needs(load_config(overrides=["geometry.resolution=1024"]), torch.device("cpu"))


def test_it_is_asked_before_the_teacher_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: 2**30)
    words = ["device=cpu", *VOXELS, "pretrained_model_name_or_path=no/such-model"]
    with pytest.raises(CarvError, match=r"system.geometry.resolution = 1024 takes"):
        TextTo3D(load_config(overrides=words, prompt="a mug"))


def test_levels_that_grow_beyond_any_grid_are_refused() -> None:
    with pytest.raises(CarvError, match=r"finest level would have 1.84e\+22 cells .* 1,048,576 is the most"):
        load_config(overrides=["per_level_scale=4", "n_levels=32", "base_resolution=4000"])
