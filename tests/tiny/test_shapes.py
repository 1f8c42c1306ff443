"""Signed distances of primitives, how they join, and objects that fill their ball."""

import numpy as np
import pytest

from carv_3d.tiny import objects, shapes
from carv_3d.tiny.primitives import DARK, INTERSECT, MAIN, SUBTRACT
from carv_3d.tiny.tracer import _distance, _second, distances
from carv_3d.tiny.vocabulary import MATERIALS, OBJECTS


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


def joined(prims: list[shapes.Prim], *point: float) -> tuple[float, int]:
    """Distance and part at a point of primitives that are joined in their order, no scaling."""
    packed = shapes.pack(prims)
    distance, part = _distance(packed.rows, np.zeros(3), 1.0, *point)
    return float(distance), int(part)


def test_how_primitives_join() -> None:
    left, right = shapes.sphere(-1, 0, 0, 1), shapes.sphere(1.5, 0, 0, 1, mat=DARK)
    assert joined([left, right], 0.1, 0.0, 0.0) == (pytest.approx(0.1), MAIN)
    assert joined([left, right], 0.4, 0.0, 0.0) == (pytest.approx(0.1), DARK)
    cut = shapes.sphere(0, 0, 0, 0.5, mat=DARK, op=SUBTRACT)
    assert joined([left, cut], -0.25, 0.0, 0.0) == (pytest.approx(0.25), MAIN)  # a cut has no color of its own
    assert joined([left, cut], -1.0, 0.0, 0.0) == (pytest.approx(-0.5), MAIN)
    lens = shapes.sphere(0, 0, 0, 0.5, mat=DARK, op=INTERSECT)
    assert joined([left, lens], -0.25, 0.0, 0.0) == (pytest.approx(-0.25), MAIN)
    assert joined([left, lens], 0.3, 0.0, 0.0) == (pytest.approx(0.3), MAIN)


def test_a_smooth_union_bulges_between_its_parts_alone() -> None:
    parts = [shapes.sphere(-1, 0, 0, 0.8), shapes.sphere(1, 0, 0, 0.8, k=0.4)]
    assert joined(parts, 0.0, 0.0, 0.0)[0] == pytest.approx(0.2 - 0.4 / 4)  # equally far from both: k / 4 nearer
    assert joined(parts, -0.1, 0.0, 0.0)[0] == pytest.approx(0.1 - 0.25 * 0.2**2 / 0.4)
    assert joined(parts, -1.0, 0.0, 1.0)[0] == pytest.approx(0.2)


def test_mirror_images_are_across_the_plane_of_y() -> None:
    prim = shapes.box(0.3, 0.4, -0.1, 0.3, 0.1, 0.2, 0.01, rot=(20.0, 30.0, 40.0), mat=DARK, op=INTERSECT, k=0.1)
    prim_side, other = shapes.both_sides(prim)
    assert prim_side == prim
    assert (other.mat, other.op, other.k) == (DARK, INTERSECT, 0.1)
    for x, y, z in np.random.default_rng(0).normal(size=(20, 3)):
        assert at(other, x, -y, z) == pytest.approx(at(prim, x, y, z))


def test_rotations_are_about_x_then_y_then_z() -> None:
    rod = shapes.capsule(0, 0, 0, 0.1, 1.0, rot=(0.0, 90.0, 90.0))  # from z to x, then to y
    assert at(rod, 0, 1, 0) == pytest.approx(-0.1)
    assert at(rod, 1, 0, 0) > 0.5
    tilted = shapes.capsule(0, 0, 0, 0.1, 1.0, rot=(90.0, 0.0, 0.0))  # z to -y
    assert at(tilted, 0, -1, 0) == pytest.approx(-0.1)
    corner = shapes.box(0, 0, 0, 1, 0.1, 0.1, 0.0, rot=(0.0, 0.0, 30.0))
    assert at(corner, np.cos(np.pi / 6), 0.5, 0) == pytest.approx(0, abs=1e-9)


def test_packing_centers_and_scales() -> None:
    packed = shapes.pack([shapes.box(0.5, -0.3, 0.2, 0.8, 0.4, 0.4, 0.0)], radius=0.6)
    np.testing.assert_allclose(packed.centre, [0.5, -0.3, 0.2], atol=0.021)
    assert packed.scale == pytest.approx(0.6 / np.linalg.norm([0.8, 0.4, 0.4]), rel=0.05)
    world = distances(packed.rows, packed.centre, packed.scale, np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    assert world[0] == pytest.approx(-0.4 * packed.scale, rel=0.06)  # distances are in world units
    assert world[1] == pytest.approx(1 - 0.8 * packed.scale, rel=0.06)


def test_stripes_and_spots_are_where_they_are() -> None:
    plain, striped, spotted = range(3)
    assert MATERIALS == ("plain", "striped", "spotted")
    heights = [0.0, 0.1, 0.12, 0.29, 0.31, -0.01, -0.2]
    assert [bool(_second(striped, 0.5, 0.5, z)) for z in heights] == [True, True, False, False, True, False, True]
    points = [(0.17, 0.17, 0.17), (0.0, 0.0, 0.0), (0.17, 0.17, 0.05), (0.17, 0.0, 0.0), (0.34, 0.34, 0.34)]
    assert [bool(_second(spotted, *p)) for p in points] == [True, True, False, False, True]
    assert not any(_second(plain, *p) for p in points)


@pytest.mark.parametrize("name", sorted(OBJECTS))
def test_every_object_fills_its_ball(name: str) -> None:
    obj, rng = objects.packed(name), np.random.default_rng(0)
    direction = rng.normal(size=(20_000, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    outside = distances(obj.rows, obj.centre, obj.scale, direction * (shapes.RADIUS + 0.03))
    within = distances(obj.rows, obj.centre, obj.scale, direction * rng.uniform(0, 0.84, (20_000, 1)))
    assert outside.min() > 0
    assert within.min() < -0.03
