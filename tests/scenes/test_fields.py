"""Radiance fields: the initial blob, normals, the choice of a field, errors that say the way out."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from carv_3d.errors import CarvError
from carv_3d.scenes.fields import Field, FieldOptions, VoxelGridField, make_field


def small(name: str) -> Field:
    torch.manual_seed(0)
    options = FieldOptions(resolution=32, n_levels=4, log2_hashmap_size=12, base_resolution=8)
    return make_field(name, options)


@pytest.mark.parametrize("name", ["voxel", "hash"])
def test_field_starts_as_the_blob(name: str) -> None:
    field = small(name)
    x = torch.tensor([[0.52, 0.0, 0.0], [0.0, -0.3, 0.0], [0.0, 0.0, 0.8], [0.5, 0.5, 0.5]])
    sigma, rgb = field.density_and_color(x)
    expected = 10 * F.softplus(12 * (0.52 - x.norm(dim=-1, keepdim=True)))
    assert sigma.shape == (4, 1)
    assert rgb.shape == (4, 3)
    assert ((sigma / expected).log().abs() < 0.25).all()
    assert (rgb >= 0).all()
    assert (rgb <= 1).all()
    torch.testing.assert_close(field.density(x), sigma)


@pytest.mark.parametrize("name", ["voxel", "hash"])
def test_normals_of_the_blob_point_outwards(name: str) -> None:
    field = small(name)
    x = F.normalize(torch.randn(40, 3, generator=torch.Generator().manual_seed(1)), dim=-1) * 0.5
    n = field.normal(x)
    torch.testing.assert_close(n.norm(dim=-1), torch.ones(40))
    assert ((n * F.normalize(x, dim=-1)).sum(-1) > 0.98).all()


def test_every_parameter_receives_a_gradient() -> None:
    field = small("hash")
    x = 1.5 * torch.rand(4000, 3, generator=torch.Generator().manual_seed(2)) - 0.75
    sigma, rgb = field.density_and_color(x)
    (sigma.sum() + rgb.sum()).backward()
    for parameter in field.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_upsampling_keeps_the_field() -> None:
    field = VoxelGridField(FieldOptions(resolution=9))
    torch.manual_seed(0)
    with torch.no_grad():
        field.grid.add_(torch.randn_like(field.grid))
    x = torch.rand(100, 3) - 0.5
    before = field.density(x)
    field.upsample(17)  # every old voxel is one of the new ones
    assert field.grid.shape == (17, 17, 17, 4)
    torch.testing.assert_close(field.density(x), before, atol=1e-3, rtol=1e-4)


def test_auto_says_what_it_chose_and_errors_say_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    field = make_field("auto", {"resolution": 8}, said.append)
    assert isinstance(field, VoxelGridField)
    assert said == ["field: voxel (the device is cpu), 2,048 parameters"]
    with pytest.raises(CarvError, match="unknown field 'nerf'; there are: auto, voxel"):
        make_field("nerf")
    with pytest.raises(CarvError, match="unknown option 'size'"):
        make_field("voxel", {"size": 3})
    with pytest.raises(CarvError, match="resolution is 1"):
        make_field("voxel", {"resolution": 1})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CarvError, match="needs a CUDA GPU"):
        make_field("tcnn")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    with pytest.raises(CarvError, match="pip install git"):
        make_field("tcnn")


def test_tinycudann_is_given_the_unit_cube(monkeypatch: pytest.MonkeyPatch) -> None:
    class Encoding(torch.nn.Module):
        def __init__(self, n_in: int, config: dict[str, Any], dtype: torch.dtype) -> None:
            super().__init__()
            self.n_out = config["n_levels"] * config["n_features_per_level"]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.min() >= 0
            assert x.max() <= 1
            return torch.zeros(len(x), self.n_out, dtype=torch.float16)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "tinycudann", SimpleNamespace(Encoding=Encoding))
    field = make_field("tcnn")
    x = torch.tensor([[-1.08, 1.08, 0.0], [0.52, 0.0, 0.0]])
    sigma, rgb = field.density_and_color(x)
    assert sigma.dtype == rgb.dtype == torch.float32
    assert sigma[1] > 100 * sigma[0]
