"""Radiance fields: the initial blob, normals, the choice of a field, errors that say what to do."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from carv_3d.errors import CarvError
from carv_3d.scenes import fields
from carv_3d.scenes.fields import Field, FieldOptions, HashGridField, VoxelGridField, make_field
from carv_3d.scenes.hashed import interpolate_hashed
from carv_3d.scenes.trilinear import interpolate


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


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("resolution", 1),
        ("resolution", 1025),
        ("n_levels", 0),
        ("n_levels", 33),
        ("n_features_per_level", 0),
        ("n_features_per_level", 17),
        ("log2_hashmap_size", 0),
        ("log2_hashmap_size", 29),
        ("base_resolution", 1),
        ("base_resolution", 4097),
        ("n_neurons", 0),
        ("n_neurons", 4097),
        ("n_hidden_layers", -1),
        ("n_hidden_layers", 17),
        ("radius", 0.0),
        ("radius", 1e-320),
        ("density_scale", 1e-320),
        ("density_scale", 0.0),
        ("density_scale", math.nan),
        ("blob_scale", -1.0),
        ("per_level_scale", 0.99),
    ],
)
def test_options_out_of_range_are_named(option: str, value: float) -> None:
    with pytest.raises(CarvError, match=f"^{option} is {value}"):
        FieldOptions(**{option: value})  # type: ignore[arg-type]
    FieldOptions(blob_scale=0.0, blob_radius=-1.0, per_level_scale=1.0, n_hidden_layers=0, resolution=2)


def test_logits_are_activated_after_the_interpolation() -> None:
    field = VoxelGridField(FieldOptions(resolution=2, density_scale=3.0))
    with torch.no_grad():
        field.grid.copy_(torch.tensor([-1.0, 0.5, -2.0, 0.0]).expand(2, 2, 2, 4))
        field.grid[1, ..., 0] = 2.0
    sigma, rgb = field.density_and_color(torch.zeros(1, 3))
    assert sigma.item() == pytest.approx(3 * math.log(1 + math.exp(0.5)))
    torch.testing.assert_close(rgb[0], torch.sigmoid(torch.tensor([0.5, -2.0, 0.0])))


@pytest.mark.parametrize("name", ["voxel", "hash"])
def test_the_blob_is_the_options(name: str) -> None:
    options = {"radius": 2.0, "density_scale": 5.0, "blob_scale": 3.0, "blob_radius": 1.0}
    field = make_field(name, {**options, "resolution": 41, "n_levels": 2})
    if isinstance(field, HashGridField):  # its network says nothing
        torch.nn.init.zeros_(field.head[-1].weight)
        torch.nn.init.zeros_(field.head[-1].bias)
    x = torch.tensor([[1.5, 0.0, 0.0], [0.0, -0.5, 0.0]])  # nodes of the grid
    expected = 5 * F.softplus(3 * (1 - x.norm(dim=-1, keepdim=True)))
    torch.testing.assert_close(field.density(x), expected, rtol=1e-4, atol=0)
    assert field.normal_eps == pytest.approx(2 * 2.0 / 40 if name == "voxel" else 0.02)


def test_normals_are_of_the_width_that_is_given_and_zero_where_nothing_changes() -> None:
    field = VoxelGridField(FieldOptions(resolution=3, radius=1.0))
    with torch.no_grad():
        field.grid[..., 0] = torch.tensor([0.0, 0.0, 8.0])[:, None, None]  # rises along x beyond x = 0
    x = torch.tensor([[-0.3, 0.0, 0.0]])
    torch.testing.assert_close(field.normal(x, eps=0.2), torch.zeros(1, 3))
    torch.testing.assert_close(field.normal(x, eps=0.5), torch.tensor([[-1.0, 0.0, 0.0]]))
    torch.testing.assert_close(field.normal(x), torch.tensor([[-1.0, 0.0, 0.0]]))  # by default one voxel


def test_a_hash_field_has_the_levels_and_the_network_of_its_options() -> None:
    field = make_field(
        "hash",
        {"n_levels": 3, "n_features_per_level": 4, "log2_hashmap_size": 10, "base_resolution": 5,
         "per_level_scale": 2.0, "n_neurons": 6, "n_hidden_layers": 2},
    )  # fmt: skip
    assert isinstance(field, HashGridField)
    assert field.resolutions == [5, 10, 20]
    assert [tuple(level.shape) for level in field.levels] == [(5, 5, 5, 4), (10, 10, 10, 4), (1024, 4)]
    widths = [(m.in_features, m.out_features) for m in field.head if isinstance(m, torch.nn.Linear)]
    assert widths == [(12, 6), (6, 6), (6, 4)]
    assert max(float(level.detach().abs().max()) for level in field.levels) <= 1e-4
    x = torch.rand(7, 3) - 0.5
    encoded = field.encode(x)
    assert encoded.shape == (7, 12)
    torch.testing.assert_close(encoded[:, :4], interpolate(field.levels[0], x / 1.08))
    torch.testing.assert_close(encoded[:, 8:], interpolate_hashed(field.levels[2], x / 1.08, 20))


def test_a_level_that_just_fits_its_table_is_dense() -> None:
    field = make_field("hash", {"n_levels": 1, "base_resolution": 8, "log2_hashmap_size": 9})
    assert isinstance(field, HashGridField)
    assert field.levels[0].shape == (8, 8, 8, 2)


@pytest.mark.parametrize(
    ("device", "tcnn", "numba", "expected"),
    [
        ("cuda", True, True, "tcnn"),
        ("cuda", False, True, "voxel"),
        ("cpu", True, True, "fused"),
        ("cpu", True, False, "voxel"),
        ("meta", True, True, "voxel"),
    ],
)
def test_auto_takes_a_hash_grid_where_it_is_fast(
    device: str, tcnn: bool, numba: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Recorded(torch.nn.Linear):
        def __init__(self, options: FieldOptions) -> None:
            super().__init__(1, 1)

        def to(self, device: Any) -> Any:  # there may be no such device here
            return self

    monkeypatch.setattr(fields, "FIELDS", {name: type(name, (Recorded,), {}) for name in ("voxel", "fused", "tcnn")})
    monkeypatch.setattr(fields.importlib.util, "find_spec", lambda name: object() if tcnn else None)
    monkeypatch.setattr(fields, "numba_available", lambda: numba)
    assert type(make_field("auto", device=device)).__name__ == expected


def test_auto_says_what_it_chose_and_errors_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(fields, "numba_available", lambda: False)
    field = make_field("auto", {"resolution": 8}, said.append)
    assert isinstance(field, VoxelGridField)
    assert said == ["field: voxel (numba is not installed), 2,048 parameters"]
    with pytest.raises(CarvError, match="unknown field 'nerf'; there are: auto, voxel"):
        make_field("nerf")
    with pytest.raises(CarvError, match="FieldOptions has no option 'size'"):
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
            assert (n_in, dtype, config) == (
                3,
                torch.float32,
                {"otype": "HashGrid", "n_levels": 5, "n_features_per_level": 3, "log2_hashmap_size": 11,
                 "base_resolution": 7, "per_level_scale": 1.5},
            )  # fmt: skip
            self.n_out = 15

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.testing.assert_close(x[0], torch.tensor([0.0, 1.0, 0.5]))
            return torch.zeros(len(x), self.n_out, dtype=torch.float16)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "tinycudann", SimpleNamespace(Encoding=Encoding))
    options = {"n_levels": 5, "n_features_per_level": 3, "log2_hashmap_size": 11, "base_resolution": 7}
    field = make_field("tcnn", {**options, "per_level_scale": 1.5})
    x = torch.tensor([[-1.08, 1.08, 0.0], [0.52, 0.0, 0.0]])
    sigma, rgb = field.density_and_color(x)
    assert sigma.dtype == rgb.dtype == torch.float32
    assert sigma[1] > 100 * sigma[0]


@pytest.mark.parametrize("name", ["voxel", "hash", "fused"])
def test_points_that_no_field_has_are_one_sentence(name: str) -> None:
    """The compiled loops read three numbers of each point, whether they are there or not."""
    field = make_field(name, {"n_levels": 2, "log2_hashmap_size": 6, "resolution": 4, "n_neurons": 4})
    for bad, given in (
        (torch.rand(5, 4), r"\(5, 4\) torch.float32"),
        (torch.rand(5, 2), r"\(5, 2\)"),
        (torch.rand(3), r"\(3,\)"),
        (torch.rand(2, 5, 3), r"\(2, 5, 3\)"),
        (torch.ones(5, 3, dtype=torch.int64), r"\(5, 3\) torch.int64"),
        ([[0.0, 0.0, 0.0]], "a list"),
        (None, "a NoneType"),
    ):
        with pytest.raises(CarvError, match=rf"the points of a field are {given}.*; they must be a tensor \(N, 3\)"):
            field.raw(bad)  # type: ignore[arg-type]
    assert field.raw(torch.zeros(0, 3)).shape == (0, 4)


@pytest.mark.parametrize("name", ["voxel", "hash", "fused"])
def test_second_derivatives_of_compiled_loops_are_one_sentence(name: str) -> None:
    field = make_field(name, {"n_levels": 2, "log2_hashmap_size": 6, "resolution": 4, "n_neurons": 4})
    parameters = list(field.parameters())
    torch.autograd.grad(field.raw(torch.rand(5, 3)).sum(), parameters)
    with pytest.raises(CarvError, match="have no second derivatives; leave create_graph out"):
        torch.autograd.grad(field.raw(torch.rand(5, 3)).square().sum(), parameters, create_graph=True)
