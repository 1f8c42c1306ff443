"""Textures: which texel belongs to which triangle, and the colors that are baked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from carv_3d.scenes._raster import rasterize
from carv_3d.scenes.fields import FieldOptions, VoxelGridField
from carv_3d.scenes.texture import surface_colors, textured


def test_a_texel_belongs_to_the_triangle_over_its_center_with_barycentric_weights() -> None:
    uv = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [7.0, 7.0], [7.0, 5.0], [5.0, 7.0], [6.0, 6.0]])
    faces = np.array([[0, 1, 2], [3, 5, 4], [3, 3, 6]])  # the second winds the other way, the third has no area
    face, weights = rasterize(uv, np.zeros(7), faces, 8, 8)
    for y in range(8):
        for x in range(8):
            inside = [x + y <= 4, x + y >= 12 and x <= 7 and y <= 7]
            assert face[y, x] == (inside.index(True) if any(inside) else -1)
            if face[y, x] >= 0:
                corners = uv[faces[face[y, x]]]
                assert weights[y, x].sum() == pytest.approx(1)
                assert weights[y, x] @ corners == pytest.approx([x, y])


def test_triangles_that_reach_beyond_the_image_are_cut_off() -> None:
    face, _ = rasterize(np.array([[-5.0, -5.0], [20.0, -5.0], [-5.0, 20.0]]), np.zeros(3), np.array([[0, 1, 2]]), 4, 6)
    assert face.shape == (4, 6)
    assert (face == 0).all()


def test_the_nearer_of_two_triangles_is_seen() -> None:
    corners = np.array([[-5.0, -5.0], [20.0, -5.0], [-5.0, 20.0]])
    depth = np.array([1.0, 3.0, 1.0, 2.0, 2.0, 2.0])  # the first falls back to the right
    face, _ = rasterize(np.concatenate([corners, corners]), depth, np.array([[0, 1, 2], [3, 4, 5]]), 1, 12)
    assert face[0].tolist() == [0 if 1 + 2 * (x + 5) / 25 <= 2 else 1 for x in range(12)]


def test_colors_come_from_below_the_surface_and_not_from_the_air() -> None:
    field = VoxelGridField(FieldOptions(resolution=33, radius=1.0))
    axis = torch.linspace(-1, 1, 33)
    r = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).norm(dim=-1)
    with torch.no_grad():
        field.grid[..., 0] = torch.where(r < 0.6, 8.0, -8.0)
        field.grid[..., 1:] = torch.where(r < 0.6, -2.0, 4.0)[..., None]  # dark inside, white air
    normals = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    colors = surface_colors(field, (0.6 * normals).numpy(), normals.numpy())
    dark, white = 1 / (1 + np.exp(2.0)), 1 / (1 + np.exp(-4.0))
    assert (colors < dark + 0.15 * (white - dark)).all()  # the lattice itself blends the two over its pitch


def test_each_point_of_the_surface_has_the_color_of_the_field_there() -> None:
    """Up to the texture's grain: the field's color is a ramp along x and along y."""
    field = VoxelGridField(FieldOptions(resolution=33, radius=1.0))
    axis = torch.linspace(-1, 1, 33)
    x = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    with torch.no_grad():
        field.grid[..., 0] = torch.where(x.norm(dim=-1) < 0.62, 8.0, -8.0)
        field.grid[..., 1], field.grid[..., 2] = 2 * x[..., 0], 2 * x[..., 1]
    sphere = trimesh.creation.icosphere(3, radius=0.6)
    out = textured(field, sphere, 256)
    colors = np.asarray(out.visual.to_color().vertex_colors)[:, :2] / 255
    points = np.asarray(out.vertices)
    assert len(points) > len(sphere.vertices)  # split at seams
    expected = 1 / (1 + np.exp(-2 * 0.9 * points[:, :2]))  # the rays go some way in
    assert np.abs(colors - expected).max() < 0.06
