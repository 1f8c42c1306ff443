import math
import random

import numpy as np
import pytest

from carv_3d.tiny import objects, shapes
from carv_3d.tiny.dataset import build, draw_view
from carv_3d.tiny.render import Shot, render, render_view
from carv_3d.tiny.tracer import distances
from carv_3d.tiny.vocabulary import COLORS, OBJECTS, held_out_combinations


def at(prim: shapes.Prim, *point: float) -> float:
    """Distance of a point to one primitive, no scaling."""
    row = np.zeros((1, shapes.ROW))
    row[0, :4] = prim.kind, prim.op, prim.mat, prim.k
    row[0, 4:7] = prim.at
    row[0, 7:16] = shapes._rotation(prim.rot).T.reshape(-1)
    row[0, 16 : 16 + len(prim.size)] = prim.size
    return float(distances(row, np.zeros(3), 1.0, np.array([point]))[0])


@pytest.mark.parametrize(
    ("prim", "point", "distance"),
    [
        (shapes.sphere(1, 0, 0, 0.5), (3, 0, 0), 1.5),
        (shapes.box(0, 0, 0, 1, 2, 3, 0.0), (2, 0, 0), 1.0),
        (shapes.box(0, 0, 0, 1, 2, 3, 0.0), (4, 6, 3), 5.0),
        (shapes.box(0, 0, 0, 1, 2, 3, 0.1), (0.5, 0, 0), -0.5),
        (shapes.cylinder(0, 0, 0, 1, 2, 0.0), (0, 4, 0), 3.0),
        (shapes.cylinder(0, 0, 0, 1, 2, 0.0), (0, 0, 5), 3.0),
        (shapes.cylinder(0, 0, 0, 1, 2, 0.0, rot=(90, 0, 0)), (0, 5, 0), 3.0),
        (shapes.cone(0, 0, 0, 1, 1, 2), (3, 0, 0), 2.0),
        (shapes.cone(0, 0, 0, 1, 0.5, 2), (0, 0, 4), 2.0),
        (shapes.torus(0, 0, 0, 2, 0.5), (0, 0, 0), 1.5),
        (shapes.capsule(0, 0, 0, 0.5, 1), (0, 0, 3), 1.5),
        (shapes.ellipsoid(0, 0, 0, 1, 1, 1), (3, 0, 0), 2.0),
    ],
)
def test_distances_known_by_hand(prim: shapes.Prim, point: tuple, distance: float) -> None:
    assert at(prim, *point) == pytest.approx(distance, abs=1e-6)


@pytest.mark.parametrize("name", sorted(OBJECTS))
def test_every_object_fills_its_ball(name: str) -> None:
    obj, rng = objects.packed(name), np.random.default_rng(0)
    direction = rng.normal(size=(20_000, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    outside = distances(obj.rows, obj.centre, obj.scale, direction * (shapes.RADIUS + 0.03))
    within = distances(obj.rows, obj.centre, obj.scale, direction * rng.uniform(0, 0.84, (20_000, 1)))
    assert outside.min() > 0
    assert within.min() < -0.03


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


def test_dataset_is_seeded_reopened_and_never_shows_an_unseen_pair(tmp_path) -> None:
    first = build(tmp_path / "a", 60, seed=5, log=lambda m: None)
    second = build(tmp_path / "b", 60, seed=5, log=lambda m: None)
    np.testing.assert_array_equal(first.rgb, second.rgb)
    stamp = (tmp_path / "a" / "rgb.npy").stat().st_mtime_ns
    again = build(tmp_path / "a", 60, seed=5, log=lambda m: None)
    assert (tmp_path / "a" / "rgb.npy").stat().st_mtime_ns == stamp
    assert again.shots == first.shots
    assert not {(s.obj, s.color) for s in first.shots} & held_out_combinations()


def test_a_background_put_in_later_equals_one_rendered(tmp_path) -> None:
    images = build(tmp_path, 6, seed=7, log=lambda m: None)
    grey = (0.8, 0.7, 0.9)
    shots = [Shot(**{**s.__dict__, "background": grey}) for s in images.shots]
    rendered = render(shots)[0] / 255
    composed = images.on(np.arange(6), np.tile(np.array([grey]), (6, 1)))
    np.testing.assert_allclose(composed, rendered, atol=1.2 / 255)
