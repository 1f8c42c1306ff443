import math
import random

import numpy as np
import pytest

from carv_3d.scenes.cameras import orbit
from carv_3d.tiny import render as renderer
from carv_3d.tiny import shapes
from carv_3d.tiny.dataset import draw_view
from carv_3d.tiny.render import Shot, render, render_view, second_color
from carv_3d.tiny.vocabulary import COLORS


def test_a_sphere_covers_the_disc_that_geometry_says(monkeypatch: pytest.MonkeyPatch) -> None:
    ball = shapes.pack([shapes.sphere(0.3, 0.1, 0, 1.2)])
    monkeypatch.setattr("carv_3d.tiny.render.packed", lambda name: ball)
    _, alpha = render_view([Shot("ball", "red", distance=2.75, fovy=39.0)], size=128)
    radius = math.tan(math.asin(shapes.RADIUS / 2.75)) / math.tan(math.radians(19.5))  # of half the image
    assert alpha.mean() == pytest.approx(math.pi * radius**2 / 4, rel=0.05)  # pack works on a grid of 0.04


def test_the_front_faces_x_and_the_left_is_y() -> None:
    mug, duck = (render([Shot(n, "red", azimuth=0.0, elevation=5.0)])[1][0] for n in ("mug", "duck"))
    columns = mug.sum(0).astype(int)
    body, handle = columns[11:18].mean(), columns[46:53].mean()  # seen from the front, the handle (its left) is right
    assert 0 < 2 * handle < body
    assert abs(int(duck[:, :32].sum()) - int(duck[:, 32:].sum())) < 0.05 * duck.sum()  # symmetric from the front
    side = render([Shot("duck", "red", azimuth=90.0, elevation=5.0)])[1][0]
    top = side[: np.nonzero(side.any(1))[0][0] + 12].sum(0)
    assert top[:32].sum() > top[32:].sum()  # from its left the head looks to the left of the image


def test_colorings_of_one_view_equal_images_taken_alone() -> None:
    shots = draw_view(random.Random(3), {"car": list(COLORS)})
    together, alpha = render(shots)
    for i, shot in enumerate(shots):
        alone, alone_alpha = render([shot])
        np.testing.assert_array_equal(alone[0], together[i])
        np.testing.assert_array_equal(alone_alpha[0], alpha[i])


@pytest.mark.parametrize(("elevation", "azimuth"), [(0.0, 0.0), (30.0, 60.0), (-10.0, 200.0)])
def test_cameras_are_those_of_the_scenes(elevation: float, azimuth: float) -> None:
    right, up, forward, position = renderer._pose(elevation, azimuth, 2.7)
    camera = orbit(1, elevation, distance=2.7, start=azimuth).c2w[0].numpy()
    np.testing.assert_allclose(np.stack([right, up, -forward, position], 1), camera, atol=1e-6)


def ball(
    monkeypatch: pytest.MonkeyPatch, shot: Shot, size: int = 64, samples: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """A ball in place of the shot's object: image and coverage."""
    packed = shapes.pack([shapes.sphere(0, 0, 0, 1.0)])
    monkeypatch.setattr("carv_3d.tiny.render.packed", lambda name: packed)
    rgb, alpha = render_view([shot], size, samples)
    return rgb[0], alpha


def test_the_light_is_at_the_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    rgb, alpha = ball(monkeypatch, Shot("ball", "yellow", background=(0.2, 0.4, 0.6)))
    np.testing.assert_allclose(rgb[31, 31], COLORS["yellow"], rtol=0.01)
    np.testing.assert_allclose(rgb[0, 0], (0.2, 0.4, 0.6))
    shade = (rgb / COLORS["yellow"])[alpha == 1]
    assert 0.52 <= shade.min() < 0.75
    assert shade.max() <= 1 + 1e-6
    rim = (alpha > 0) & (alpha < 1)  # pixels that are partly the ball's are mixed by their coverage
    shade = (rgb[rim] - (1 - alpha[rim])[:, None] * [0.2, 0.4, 0.6]) / alpha[rim][:, None] / COLORS["yellow"]
    assert 0.5 < shade.min() <= shade.max() < 0.85


def test_the_ball_is_smaller_from_afar_and_with_a_wider_view(monkeypatch: pytest.MonkeyPatch) -> None:
    for shot in (Shot("ball", "red", distance=3.0), Shot("ball", "red", fovy=60.0)):
        _, alpha = ball(monkeypatch, shot)
        radius = math.tan(math.asin(shapes.RADIUS / shot.distance)) / math.tan(math.radians(shot.fovy / 2))
        assert alpha.mean() == pytest.approx(math.pi * radius**2 / 4, rel=0.06)


def test_size_and_samples_are_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = {}
    for samples in (1, 3):
        rgb, alpha = ball(monkeypatch, Shot("ball", "red"), 20, samples)
        assert (rgb.shape, alpha.shape) == ((20, 20, 3), (20, 20))
        levels[samples] = {round(float(v) * samples**2, 6) for v in alpha.flat}
    assert levels[1] == {0.0, 1.0}
    assert levels[3] <= set(map(float, range(10)))
    assert len(levels[3]) > 4


@pytest.mark.parametrize(("material", "share"), [("plain", 0.0), ("striped", 0.38), ("spotted", 0.3)])
def test_materials_paint_their_share_in_the_second_color(material: str, share: float, monkeypatch) -> None:
    rgb, alpha = ball(monkeypatch, Shot("ball", "red", material, elevation=0.0), 96, 1)
    second = rgb[..., 2] / np.maximum(rgb[..., 0], 1e-9) > 0.5  # cream, and not red
    assert second[alpha == 1].mean() == pytest.approx(share, abs=0.08)


def test_second_colors_stand_out() -> None:
    light = {name for name in COLORS if second_color(name)[0] < 0.5}
    assert light == {"orange", "yellow", "pink", "white"}


def test_threads_and_neighbors_do_not_matter() -> None:
    shots = [Shot("mug", "red"), Shot("mug", "blue"), Shot("car", "red"), Shot("mug", "green", elevation=60.0)]
    many, alone = render(shots, 24, 1, threads=4), render(shots, 24, 1, threads=1)
    for a, b in zip(many, alone):
        np.testing.assert_array_equal(a, b)
    assert (many[0].dtype, many[1].dtype) == (np.uint8, np.uint8)
    np.testing.assert_array_equal(many[1][0], many[1][1])  # one view
    assert (many[1][0] != many[1][3]).any()
