"""Images of a textured mesh: where the renderer of the field sees it, in its colors, on a ground with a shadow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from painted_box import painted_box

from carv_3d.scenes.cameras import Cameras, orbit
from carv_3d.scenes.mesh import MeshOptions, extract_mesh
from carv_3d.scenes.product_shot import AMBIENT, SHADOW, _Scene, product_shot
from carv_3d.scenes.rendering import VolumeRenderer
from carv_3d.scenes.texture import textured


@pytest.fixture(scope="module")
def box() -> trimesh.Trimesh:
    field = painted_box()
    return textured(field, extract_mesh(field, MeshOptions(resolution=49)), 64)


def cameras(elevation: float) -> Cameras:
    return orbit(5, elevation=elevation, distance=3.0, fovy=40.0)


def test_it_lies_where_the_field_does_in_the_colors_of_its_sides(box: trimesh.Trimesh) -> None:
    views = cameras(20.0)
    images = product_shot(box, views, 48, 40)
    assert images.shape == (5, 48, 40, 3)
    colors, opacity, _ = VolumeRenderer(painted_box()).render(views, 48, 40, torch.ones(3))
    solid = opacity[..., 0] > 0.5
    drawn = (images.max(dim=-1).values - images.min(dim=-1).values) > 0.1  # the ground and its shadow are gray
    assert (drawn & solid).sum() / (drawn | solid).sum() > 0.93
    orange, true_orange = ((x[..., 0] - x[..., 2] > 0.15) & solid for x in (images, colors))
    assert (orange & true_orange).sum() / (orange | true_orange).sum() > 0.9  # of the box's two halves, from all sides
    shade = images[0][orange[0]].median(dim=0).values / torch.tensor([0.9, 0.5, 0.1])  # the front's
    assert ((shade > AMBIENT) & (shade < 0.98)).all(), shade
    assert shade.max() - shade.min() < 0.1  # the light is white


def test_the_ground_is_white_but_for_a_shadow_below_the_object(box: trimesh.Trimesh) -> None:
    image = product_shot(box, cameras(35.0)[0], 64, 64)[0]
    gray = (image.max(dim=-1).values - image.min(dim=-1).values) < 0.01
    dark = gray & (image[..., 0] < 0.95)
    assert dark.sum() > 20
    assert image[..., 0][gray].min() >= 1 - SHADOW - 1e-3
    assert dark.nonzero()[:, 0].float().mean() > 32  # below the middle
    assert (image[:8] == 1).all()  # far behind it


def test_from_below_there_is_no_ground(box: trimesh.Trimesh) -> None:
    image = product_shot(box, cameras(-20.0)[0], 32, 32)[0]
    gray = (image.max(dim=-1).values - image.min(dim=-1).values) < 0.01
    assert (image[gray] > 0.99).all()


def test_what_is_high_up_casts_less_of_a_shadow(box: trimesh.Trimesh) -> None:
    post = trimesh.creation.box((0.1, 0.1, 1.0), trimesh.transformations.translation_matrix((0, 0, 0.0)))
    slab = trimesh.creation.box((1.0, 1.0, 0.1), trimesh.transformations.translation_matrix((0, 0, 0.45)))
    both = trimesh.util.concatenate([post, slab])
    uv = np.zeros((len(both.vertices), 2))
    both.visual = trimesh.visual.TextureVisuals(uv=uv, material=box.visual.material)
    shadow = _Scene(both).shadow[0, 0]
    assert shadow[64, 64] > 2 * shadow[64, 84] > 0.01
    assert shadow[2, 2] < 1e-3
