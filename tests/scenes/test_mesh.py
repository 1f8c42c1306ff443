"""Meshes: closed, of the right volume, colored as the surface, and GLB files that say so when read back."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from painted_box import lattice, painted_box
from PIL import Image

from carv_3d.errors import CarvError
from carv_3d.scenes.cameras import orbit
from carv_3d.scenes.fields import FieldOptions, VoxelGridField
from carv_3d.scenes.mesh import (
    MeshOptions,
    choose_level,
    density_volume,
    extract_mesh,
    mesh_from_volume,
    save_asset,
    to_gltf_axes,
)
from carv_3d.scenes.rendering import VolumeRenderer
from carv_3d.scenes.texture import textured


def ball(center: tuple[float, float, float], r: float, n: int = 64, sharp: float = 40.0) -> np.ndarray:
    """Density 10 softplus(sharp (r - |x - center|)): about 7 at the surface."""
    distance = (lattice(n) - torch.tensor(center)).norm(dim=-1)
    return (10 * torch.nn.functional.softplus(sharp * (r - distance))).numpy()


LEVEL = 10 * math.log(2)


@pytest.mark.parametrize("smoothing", [0, 5])
def test_sphere_has_its_volume_and_is_closed(smoothing: int) -> None:
    mesh = mesh_from_volume(ball((0, 0, 0), 0.6), LEVEL, 1.08, smoothing=smoothing)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.03)
    assert np.abs(np.asarray(mesh.vertices).mean(axis=0)).max() < 1e-3


def test_an_object_at_the_border_is_closed_there() -> None:
    volume = np.full((20, 20, 20), 30.0, dtype=np.float32)
    mesh = mesh_from_volume(volume, 5.0, 1.0, smoothing=0)
    assert mesh.is_watertight
    assert mesh.volume > 8 * 0.95


def test_crumbs_go_cavities_are_filled_and_a_second_large_piece_stays() -> None:
    volume = np.maximum(ball((-0.4, 0, 0), 0.4), ball((0.55, 0, 0), 0.3))
    volume = np.maximum(volume, ball((0.0, 0.75, 0), 0.06))  # a crumb
    hollow = (lattice(64) - torch.tensor([-0.4, 0.0, 0.0])).norm(dim=-1).numpy() < 0.2
    volume[hollow] = 0.0
    mesh = mesh_from_volume(volume, LEVEL, 1.08)
    assert mesh.body_count == 2
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * (0.4**3 + 0.3**3), rel=0.03)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_is_closed_as_well(seed: int) -> None:
    rng = np.random.default_rng(seed)
    volume = ball((0, 0, 0), 0.6, n=32) * rng.lognormal(0, 1.5, (32, 32, 32)).astype(np.float32)
    mesh = mesh_from_volume(volume.astype(np.float32), LEVEL, 1.08)
    assert mesh.is_watertight
    assert mesh.volume > 0


def test_values_right_at_the_level_do_not_open_the_mesh() -> None:
    volume = np.round(ball((0, 0, 0), 0.6, n=24) / LEVEL) * LEVEL
    mesh = mesh_from_volume(volume.astype(np.float32), LEVEL, 1.08, smoothing=0)
    assert mesh.is_watertight


@pytest.mark.parametrize(("scale", "sharp"), [(1.0, 12.0), (0.3, 40.0), (20.0, 30.0)])
def test_auto_level_gives_the_silhouette_of_the_render(scale: float, sharp: float) -> None:
    """From afar, where perspective is nearly orthographic: areas of the render's and the mesh's outline."""
    field = VoxelGridField(FieldOptions(blob_radius=0.55, blob_scale=sharp, density_scale=10 * scale))
    mesh = extract_mesh(field, MeshOptions(resolution=72))
    camera = orbit(1, elevation=0.0, distance=40.0, fovy=3.2)
    _, opacity, _ = VolumeRenderer(field).render(camera, 96, 96)
    pixel = 2 * 40 * math.tan(math.radians(1.6)) / 96
    rendered = (opacity > 0.5).sum().item() * pixel**2
    r = np.linalg.norm(np.asarray(mesh.vertices), axis=1).mean()
    assert math.pi * r**2 == pytest.approx(rendered, rel=0.06)


def test_empty_and_full_fields_say_so() -> None:
    field = VoxelGridField(FieldOptions(resolution=8))
    with torch.no_grad():
        field.grid[..., 0] = -12.0
    with pytest.raises(CarvError, match="the field is empty"):
        extract_mesh(field, MeshOptions(resolution=16))
    with torch.no_grad():
        field.grid[..., 0] = 5.0
    with pytest.raises(CarvError, match="the field is full"):
        extract_mesh(field, MeshOptions(resolution=16))
    with torch.no_grad():
        field.grid[..., 0] = float("nan")
    with pytest.raises(CarvError, match="not finite"):
        extract_mesh(field, MeshOptions(resolution=16))
    volume = density_volume(VoxelGridField(), 24)
    assert choose_level(volume, 1.08, 4.5) == 4.5
    with pytest.raises(CarvError, match="empty: no density above 1e\\+03"):
        choose_level(volume, 1.08, 1000.0)


def test_small_pieces_are_a_share_of_the_whole_and_not_of_the_largest() -> None:
    volume = np.zeros((40, 40, 40), np.float32)
    for corner in ((4, 4, 4), (4, 24, 4), (24, 4, 4)):
        volume[tuple(slice(i, i + 12) for i in corner)] = 20.0
    volume[26:31, 26:31, 26:31] = 20.0  # a fortieth of the whole, a fourteenth of each
    assert 125 / (3 * 12**3 + 125) < 0.03 < 125 / 12**3
    bodies = [mesh_from_volume(volume, LEVEL, 1.0, share, smoothing=0).body_count for share in (0.02, 0.03)]
    assert bodies == [4, 3]
    assert mesh_from_volume(volume, LEVEL, 1.0, 0.99, smoothing=0).body_count == 1  # the largest stays


def test_smoothing_takes_the_steps_away_and_keeps_the_volume() -> None:
    steps = np.where(ball((0, 0, 0), 0.6, n=32) > LEVEL, 100.0, 0.0).astype(np.float32)  # no subvoxel surface
    rough, smooth = (mesh_from_volume(steps, LEVEL, 1.08, smoothing=passes) for passes in (0, 20))
    assert smooth.volume == pytest.approx(rough.volume, rel=0.01)
    spread = [np.linalg.norm(np.asarray(m.vertices), axis=1).std() for m in (rough, smooth)]
    assert spread[1] < 0.7 * spread[0]


def test_a_hard_edge_lies_between_its_two_lattice_points() -> None:
    volume = np.zeros((21, 21, 21), np.float32)
    volume[5:16, 5:16, 5:16] = 1e6
    mesh = mesh_from_volume(volume, 1.0, 1.0, smoothing=0)
    np.testing.assert_allclose(mesh.bounds, [[-0.55] * 3, [0.55] * 3], atol=1e-6)  # lattice points 0.5 and 0.6


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("resolution", 7),
        ("resolution", 1025),
        ("level", 0.0),
        ("level", "otsu"),
        ("min_component", 1.0),
        ("min_component", -0.1),
        ("smoothing", -1),
        ("smoothing", 1001),
        ("longest_side", 0.0),
        ("max_faces", 99),
        ("texture_size", 15),
    ],
)
def test_options_out_of_range_are_named(option: str, value: Any) -> None:
    with pytest.raises(CarvError, match=f"^{option} is {value!r}"):
        MeshOptions(**{option: value})
    MeshOptions(resolution=8, level=0.1, min_component=0.0, smoothing=0, longest_side=0.01)


def test_the_mesh_has_the_resolution_level_and_smoothing_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    real = mesh_from_volume

    def recorded(volume: np.ndarray, level: float, radius: float, min_component: float, smoothing: int) -> Any:
        asked.update(size=volume.shape, level=level, radius=radius, share=min_component, passes=smoothing)
        return real(volume, level, radius, min_component, smoothing)

    monkeypatch.setattr("carv_3d.scenes.mesh.mesh_from_volume", recorded)
    said: list[str] = []
    field = VoxelGridField(FieldOptions(resolution=16, radius=1.5))
    mesh = extract_mesh(field, MeshOptions(resolution=20, level=3.5, min_component=0.1, smoothing=2), said.append)
    assert asked == {"size": (20, 20, 20), "level": 3.5, "radius": 1.5, "share": 0.1, "passes": 2}
    assert mesh.metadata["level"] == 3.5
    assert said == [f"mesh: {len(mesh.vertices):,} vertices, {len(mesh.faces):,} faces, closed, level 3.5"]


def test_the_lattice_holds_the_field_within_its_sphere_whatever_the_chunk() -> None:
    field = VoxelGridField(FieldOptions(resolution=9, radius=1.2))
    with torch.no_grad():
        field.grid[..., 0] = torch.arange(9.0)[:, None, None] + 0.1 * torch.arange(9.0)
    volume = density_volume(field, 9, chunk=50)
    np.testing.assert_array_equal(volume, density_volume(field, 9))
    nodes = lattice(9, 1.2)
    inside = nodes.norm(dim=-1) < 1.2
    expected = field.density(nodes.view(-1, 3)).detach().view(9, 9, 9)
    np.testing.assert_allclose(volume[inside], expected[inside], rtol=1e-5)
    assert (volume[~inside.numpy()] == 0).all()


@pytest.fixture(scope="module")
def box_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The asset of `painted_box`."""
    folder, options = tmp_path_factory.mktemp("asset"), MeshOptions(resolution=64, max_faces=2000, texture_size=128)
    field = painted_box()
    mesh = extract_mesh(field, options)
    assert mesh.is_watertight
    assert 1000 < len(mesh.faces) <= 2000
    save_asset(textured(field, mesh, options.texture_size), folder, extras={"prompt": "a box"})
    return folder


@pytest.mark.parametrize("name", ["asset.glb", "asset.obj"])
def test_an_asset_stands_on_the_ground_faces_plus_z_and_has_its_colors(box_folder: Path, name: str) -> None:
    mesh = trimesh.load(box_folder / name, force="mesh")
    v = np.asarray(mesh.vertices)
    size = v.max(axis=0) - v.min(axis=0)
    assert size[2] == pytest.approx(1.0, abs=1e-5)  # the long axis, x, is the front axis
    # on the lattice of pitch 0.045 the box ends half a voxel beyond 15, 8 and 5 voxels from the origin
    assert size[0] == pytest.approx(8.5 / 15.5, rel=0.05)  # left: y
    assert size[1] == pytest.approx(5.5 / 15.5, rel=0.05)  # up: z
    assert v[:, 1].min() == pytest.approx(0.0, abs=1e-6)
    assert v[:, [0, 2]].max(axis=0) == pytest.approx(-v[:, [0, 2]].min(axis=0), abs=1e-6)  # centered
    outward = ((v - [0, 0.5 * size[1], 0]) * mesh.vertex_normals).sum(axis=1)
    assert (outward > 0).mean() > 0.99
    colors = np.asarray(mesh.visual.to_color().vertex_colors)[:, :3]
    for side, srgb in ((v[:, 2] > 0.1, [0.9, 0.5, 0.1]), (v[:, 2] < -0.1, [0.05, 0.2, 0.1])):
        assert np.median(colors[side], axis=0) / 255 == pytest.approx(srgb, abs=0.01)
        assert np.abs(colors[side] / 255 - srgb).max() < 0.1  # no white air, and nothing of the other half
    merged = trimesh.Trimesh(v, mesh.faces, process=False)
    merged.merge_vertices(merge_tex=True, merge_norm=True, digits_vertex=5)
    assert merged.is_watertight
    assert merged.volume == pytest.approx(float(np.prod(size)), rel=0.1)  # positive: faces wind outwards


def test_the_texture_has_its_size_and_no_empty_texel(box_folder: Path) -> None:
    for image in (
        np.asarray(Image.open(box_folder / "asset.png")),
        np.asarray(trimesh.load(box_folder / "asset.glb", force="mesh").visual.material.baseColorTexture),
    ):
        assert image.shape == (128, 128, 3)
        assert (image.reshape(-1, 3) != 0).any(axis=1).all()  # charts are widened over all between them


def test_the_glb_says_what_it_is(box_folder: Path) -> None:
    raw = (box_folder / "asset.glb").read_bytes()
    n = int.from_bytes(raw[12:16], "little")
    document = json.loads(raw[20 : 20 + n])
    assert document["asset"] == {"version": "2.0", "generator": "carv_3d", "extras": {"prompt": "a box"}}
    material = document["materials"][0]["pbrMetallicRoughness"]
    assert (material["metallicFactor"], material["roughnessFactor"]) == (0.0, 1.0)
    assert "map_Kd asset.png" in (box_folder / "asset.mtl").read_text()
    assert "Kd 1.0" in (box_folder / "asset.mtl").read_text()  # the texture is not darkened
    assert "mtllib asset.mtl" in (box_folder / "asset.obj").read_text()


def test_the_longest_side_is_what_was_asked_for(tmp_path: Path) -> None:
    field = painted_box()
    save_asset(textured(field, extract_mesh(field, MeshOptions(resolution=32)), 16), tmp_path, longest_side=0.3)
    assert np.ptp(trimesh.load(tmp_path / "asset.glb", force="mesh").bounds, axis=0).max() == pytest.approx(0.3)


@pytest.mark.slow
def test_khronos_validator_finds_no_error(box_folder: Path, tmp_path: Path) -> None:
    if not shutil.which("npm"):
        pytest.skip("node is not installed")
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(tmp_path), "gltf-validator@2.0.0-dev.3.10"]
    if subprocess.run(command, capture_output=True, timeout=120).returncode:
        pytest.skip("npm cannot install gltf-validator here")
    code = (
        "require('gltf-validator').validateBytes(new Uint8Array(require('fs').readFileSync(process.argv[1])))"
        ".then(report => console.log(JSON.stringify(report.issues)))"
    )
    done = subprocess.run(
        ["node", "-e", code, str(box_folder / "asset.glb")], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    issues = json.loads(done.stdout)
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"]


def test_a_mesh_that_fewer_triangles_would_open_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    field = VoxelGridField(FieldOptions(resolution=16))
    whole = extract_mesh(field, MeshOptions(resolution=24, max_faces=10**6))
    open_mesh = trimesh.Trimesh(whole.vertices, whole.faces[1:], process=False)
    monkeypatch.setattr(trimesh.Trimesh, "simplify_quadric_decimation", lambda self, face_count: open_mesh)
    assert len(extract_mesh(field, MeshOptions(resolution=24, max_faces=100)).faces) == len(whole.faces)


def test_axes_are_a_rotation_with_front_and_up_in_place() -> None:
    R = to_gltf_axes(np.eye(3)).T
    assert np.linalg.det(R) == pytest.approx(1)
    assert (R @ [1, 0, 0]).tolist() == [0, 0, 1]
    assert (R @ [0, 0, 1]).tolist() == [0, 1, 0]
