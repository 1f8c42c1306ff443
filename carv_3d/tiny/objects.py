"""The forty objects that carv-tiny knows, as tables of primitives (front +x, left +y, up +z)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from carv_3d.tiny.primitives import CREAM, DARK, LEAF, ORANGE, SKY, STEEL, SUBTRACT, WOOD
from carv_3d.tiny.shapes import Packed, Prim, both_sides, box, capsule, cone, cylinder, ellipsoid, pack, sphere, torus

CUT = {"op": SUBTRACT}
ACROSS = (90.0, 0.0, 0.0)  # the z axis laid along y
ALONG = (0.0, 90.0, 0.0)  # the z axis laid along x


def _wheels(x: float, y: float, z: float, r: float) -> list[Prim]:
    return [
        p
        for sx in (-x, x)
        for p in both_sides(cylinder(sx, y, z, r, 0.07, rot=ACROSS, mat=DARK), sphere(sx, y + 0.05, z, 0.06, mat=STEEL))
    ]


def _legs(x: float, y: float, z: float, r: float, h: float, **kw) -> list[Prim]:
    return [p for sx in (-x, x) for p in both_sides(cylinder(sx, y, z, r, h, **kw))]


def _eyes(x: float, y: float, z: float, r: float = 0.06) -> list[Prim]:
    return both_sides(sphere(x, y, z, r, mat=DARK))


OBJECTS: dict[str, Callable[[], list[Prim]]] = {
    "mug": lambda: [
        torus(0, 0.52, 0, 0.30, 0.085, rot=(0, 90, 0)),
        cylinder(0, 0, 0, 0.46, 0.55, 0.05),
        cylinder(0, 0, 0.2, 0.36, 0.55, **CUT),
    ],
    "teapot": lambda: [
        ellipsoid(0, 0, 0, 0.56, 0.56, 0.45),
        torus(0, 0.56, 0.02, 0.26, 0.07, rot=(0, 90, 0)),
        capsule(0, -0.66, 0.12, 0.10, 0.24, rot=(40, 0, 0), k=0.1),
        cylinder(0, 0, 0.42, 0.24, 0.06),
        sphere(0, 0, 0.54, 0.1, mat=DARK),
        cylinder(0, 0, -0.42, 0.3, 0.06),
    ],
    "bottle": lambda: [
        cylinder(0, 0, -0.2, 0.34, 0.55, 0.1),
        cone(0, 0, 0.46, 0.3, 0.13, 0.16, k=0.12),
        cylinder(0, 0, 0.72, 0.13, 0.18),
        cylinder(0, 0, 0.94, 0.15, 0.08, mat=CREAM),
    ],
    "goblet": lambda: [
        cylinder(0, 0, -0.8, 0.42, 0.06),
        cylinder(0, 0, -0.4, 0.11, 0.4, k=0.12),
        ellipsoid(0, 0, 0.4, 0.48, 0.48, 0.56, k=0.08),
        box(0, 0, 1.0, 0.7, 0.7, 0.32, **CUT),
        ellipsoid(0, 0, 0.5, 0.38, 0.38, 0.48, **CUT),
    ],
    "vase": lambda: [
        ellipsoid(0, 0, -0.3, 0.48, 0.48, 0.5),
        cone(0, 0, 0.3, 0.2, 0.22, 0.32, k=0.25),
        cone(0, 0, 0.66, 0.2, 0.42, 0.12, k=0.05),
        cylinder(0, 0, 0.72, 0.17, 0.4, **CUT),
        cylinder(0, 0, -0.78, 0.3, 0.06, k=0.05),
    ],
    "bowl": lambda: [
        sphere(0, 0, 0.3, 0.82),
        sphere(0, 0, 0.3, 0.70, **CUT),
        box(0, 0, 0.95, 1, 1, 0.75, **CUT),
        cylinder(0, 0, -0.5, 0.36, 0.07),
    ],
    "bucket": lambda: [
        torus(0, 0, 0.5, 0.54, 0.045, rot=(90, 0, 0), mat=STEEL),
        cone(0, 0, 0, 0.42, 0.6, 0.55),
        cone(0, 0, 0.12, 0.32, 0.52, 0.55, **CUT),
    ],
    "chair": lambda: [
        box(0, 0, 0, 0.46, 0.46, 0.08),
        box(-0.4, 0, 0.52, 0.07, 0.46, 0.5),
        *_legs(0.38, 0.38, -0.42, 0.08, 0.4, mat=WOOD),
    ],
    "table": lambda: [box(0, 0, 0.35, 0.8, 0.8, 0.09), *_legs(0.64, 0.64, -0.2, 0.1, 0.5)],
    "sofa": lambda: [
        box(0, 0, -0.2, 0.4, 0.9, 0.16, 0.06),
        box(-0.34, 0, 0.12, 0.14, 0.9, 0.42, 0.08),
        *both_sides(box(0.02, 0.84, 0, 0.42, 0.12, 0.3, 0.08)),
        *_legs(0.3, 0.75, -0.42, 0.06, 0.08, mat=WOOD),
    ],
    "bed": lambda: [
        box(0, 0, -0.12, 0.95, 0.6, 0.14, 0.05),
        box(-0.95, 0, 0.14, 0.07, 0.62, 0.42, mat=WOOD),
        box(0.95, 0, -0.1, 0.06, 0.62, 0.2, mat=WOOD),
        *both_sides(box(-0.68, 0.3, 0.08, 0.16, 0.22, 0.09, 0.07, mat=CREAM)),
    ],
    "lamp": lambda: [
        cylinder(0, 0, -0.85, 0.36, 0.06, mat=WOOD),
        cylinder(0, 0, -0.35, 0.07, 0.5, mat=WOOD),
        cone(0, 0, 0.4, 0.58, 0.3, 0.4),
    ],
    "candle": lambda: [
        cylinder(0, 0, -0.72, 0.55, 0.07, mat=STEEL),
        cylinder(0, 0, -0.05, 0.24, 0.65),
        ellipsoid(0, 0, 0.78, 0.1, 0.1, 0.2, mat=ORANGE),
    ],
    "car": lambda: [
        box(0, 0, -0.12, 0.95, 0.42, 0.18, 0.08),
        box(-0.12, 0, 0.16, 0.5, 0.37, 0.2, 0.1),
        box(-0.12, 0, 0.2, 0.515, 0.3, 0.1, 0.04, mat=SKY),
        box(-0.12, 0, 0.2, 0.36, 0.385, 0.1, 0.04, mat=SKY),
        *_wheels(0.55, 0.4, -0.3, 0.2),
        *both_sides(sphere(0.93, 0.28, -0.1, 0.08, mat=CREAM)),
    ],
    "bus": lambda: [
        box(0, 0, 0.1, 0.98, 0.4, 0.48, 0.07),
        box(0, 0, 0.26, 0.86, 0.42, 0.14, 0.03, mat=SKY),
        box(0.06, 0, 0.26, 0.94, 0.32, 0.14, 0.03, mat=SKY),
        *_wheels(0.6, 0.38, -0.4, 0.19),
    ],
    "truck": lambda: [
        box(0.62, 0, 0.0, 0.3, 0.38, 0.4, 0.08, mat=CREAM),
        box(0.8, 0, 0.14, 0.13, 0.32, 0.14, 0.03, mat=SKY),
        box(-0.36, 0, 0.18, 0.62, 0.44, 0.58, 0.03),
        *_wheels(0.6, 0.38, -0.45, 0.2),
    ],
    "airplane": lambda: [
        capsule(0, 0, 0, 0.18, 0.75, rot=ALONG),
        *both_sides(box(0.05, 0.55, -0.02, 0.2, 0.5, 0.05, 0.04, rot=(0, 0, 14))),
        *both_sides(box(-0.75, 0.2, 0.08, 0.1, 0.24, 0.04, 0.03)),
        box(-0.76, 0, 0.28, 0.13, 0.045, 0.24, 0.03),
        ellipsoid(0.68, 0, 0.1, 0.14, 0.12, 0.1, mat=SKY),
    ],
    "rocket": lambda: [
        cylinder(0, 0, -0.1, 0.28, 0.55, 0.05),
        cone(0, 0, 0.7, 0.28, 0.03, 0.28, mat=CREAM),
        sphere(0.22, 0, 0.18, 0.13, mat=SKY),
        *[
            box(x, y, -0.6, 0.22 * abs(x) + 0.04, 0.22 * abs(y) + 0.04, 0.22, 0.02, mat=DARK)
            for x, y in ((0.38, 0), (-0.38, 0), (0, 0.38), (0, -0.38))
        ],
        *[
            box(1.05 * x, 1.05 * y, -0.72, 0.2 * abs(x) + 0.05, 0.2 * abs(y) + 0.05, 0.2, 0.02, mat=DARK)
            for x, y in ((0.38, 0), (-0.38, 0), (0, 0.38), (0, -0.38))
        ],
    ],
    "sailboat": lambda: [
        ellipsoid(0, 0, -0.35, 0.85, 0.36, 0.4),
        box(0, 0, 0.12, 1.2, 1.2, 0.4, **CUT),
        cylinder(0.05, 0, 0.3, 0.045, 0.72, mat=WOOD),
        box(-0.05, 0, 0.38, 0.42, 0.06, 0.55, 0.02, rot=(0, -22, 0), mat=CREAM),
    ],
    "house": lambda: [
        box(0, 0, -0.3, 0.55, 0.6, 0.42, 0.02, mat=CREAM),
        box(0, 0.33, 0.4, 0.68, 0.5, 0.07, 0.02, rot=(-40, 0, 0)),
        box(0, -0.33, 0.4, 0.68, 0.5, 0.07, 0.02, rot=(40, 0, 0)),
        box(0, 0, 0.24, 0.55, 0.42, 0.24, 0.02, mat=CREAM),
        box(0.54, 0, -0.46, 0.04, 0.14, 0.26, 0.01, mat=WOOD),
        box(-0.25, -0.3, 0.7, 0.1, 0.1, 0.25, 0.01),
    ],
    "castle": lambda: [
        box(0, 0, -0.28, 0.5, 0.5, 0.38, 0.02),
        *[cylinder(x, y, -0.08, 0.2, 0.58) for x in (-0.5, 0.5) for y in (-0.5, 0.5)],
        *[cone(x, y, 0.7, 0.25, 0.02, 0.22, mat=DARK) for x in (-0.5, 0.5) for y in (-0.5, 0.5)],
        box(0.5, 0, -0.44, 0.05, 0.15, 0.22, 0.02, mat=WOOD),
    ],
    "lighthouse": lambda: [
        cone(0, 0, -0.15, 0.42, 0.24, 0.65),
        cylinder(0, 0, 0.54, 0.34, 0.05, mat=DARK),
        cylinder(0, 0, 0.68, 0.18, 0.14, mat=ORANGE),
        cone(0, 0, 0.94, 0.28, 0.03, 0.14),
        cylinder(0, 0, -0.82, 0.6, 0.08, mat=STEEL),
    ],
    "tree": lambda: [
        cylinder(0, 0, -0.6, 0.13, 0.4, mat=WOOD),
        sphere(0, 0, 0.2, 0.48),
        sphere(0.26, 0.2, 0.05, 0.34),
        sphere(-0.25, 0.24, 0.02, 0.34),
        sphere(0, -0.32, 0.05, 0.36),
    ],
    "cactus": lambda: [
        capsule(0, 0, 0.05, 0.22, 0.6),
        capsule(0, 0.36, 0.02, 0.13, 0.16, rot=ACROSS),
        capsule(0, 0.54, 0.22, 0.13, 0.22),
        capsule(0, -0.36, -0.18, 0.13, 0.16, rot=ACROSS),
        capsule(0, -0.54, 0.0, 0.13, 0.2),
        cone(0, 0, -0.78, 0.28, 0.38, 0.22, mat=ORANGE),
    ],
    "mushroom": lambda: [
        cone(0, 0, -0.42, 0.26, 0.18, 0.4, mat=CREAM),
        ellipsoid(0, 0, 0.1, 0.72, 0.72, 0.5),
        box(0, 0, -0.42, 1, 1, 0.42, 0.0, **CUT),
        cone(0, 0, -0.42, 0.26, 0.18, 0.44, mat=CREAM),
    ],
    "snowman": lambda: [
        sphere(0, 0, -0.5, 0.5),
        sphere(0, 0, 0.15, 0.36),
        sphere(0, 0, 0.64, 0.26),
        cone(0.34, 0, 0.62, 0.07, 0.01, 0.14, rot=ALONG, mat=ORANGE),
        *_eyes(0.22, 0.1, 0.72, 0.045),
        cylinder(0, 0, 0.86, 0.3, 0.035, mat=DARK),
        cylinder(0, 0, 1.0, 0.2, 0.16, mat=DARK),
        sphere(0.34, 0, 0.2, 0.05, mat=DARK),
        sphere(0.33, 0, 0.02, 0.05, mat=DARK),
    ],
    "robot": lambda: [
        box(0, 0, 0, 0.3, 0.42, 0.38, 0.04),
        box(0, 0, 0.62, 0.24, 0.28, 0.2, 0.04),
        *both_sides(sphere(0.24, 0.12, 0.66, 0.08, mat=SKY)),
        *both_sides(capsule(0, 0.54, 0.0, 0.1, 0.28, mat=STEEL)),
        *both_sides(box(0, 0.2, -0.62, 0.16, 0.13, 0.26, 0.03, mat=STEEL)),
        cylinder(0, 0, 0.9, 0.03, 0.1, mat=STEEL),
        sphere(0, 0, 1.02, 0.08, mat=ORANGE),
        box(0.3, 0, 0.05, 0.03, 0.22, 0.16, 0.02, mat=DARK),
    ],
    "bear": lambda: [
        ellipsoid(0, 0, -0.25, 0.4, 0.44, 0.48),
        ellipsoid(0.12, 0, -0.25, 0.32, 0.28, 0.34, mat=CREAM),
        sphere(0, 0, 0.42, 0.36, k=0.05),
        *both_sides(sphere(0, 0.3, 0.74, 0.15)),
        ellipsoid(0.3, 0, 0.36, 0.14, 0.15, 0.12, mat=CREAM),
        sphere(0.43, 0, 0.4, 0.055, mat=DARK),
        *_eyes(0.3, 0.14, 0.52, 0.05),
        *both_sides(capsule(0.18, 0.46, -0.1, 0.14, 0.16, rot=(35, 30, 0))),
        *both_sides(capsule(0.32, 0.3, -0.65, 0.16, 0.12, rot=ALONG)),
    ],
    "rabbit": lambda: [
        ellipsoid(-0.05, 0, -0.4, 0.46, 0.36, 0.42),
        sphere(0.22, 0, 0.12, 0.3, k=0.06),
        *both_sides(ellipsoid(0.12, 0.14, 0.64, 0.08, 0.11, 0.38, rot=(-8, 0, 0))),
        sphere(-0.5, 0, -0.4, 0.15, mat=CREAM),
        *_eyes(0.44, 0.15, 0.2, 0.055),
        sphere(0.52, 0, 0.08, 0.06, mat=DARK),
        *both_sides(ellipsoid(0.3, 0.2, -0.76, 0.24, 0.12, 0.09)),
    ],
    "dog": lambda: [
        capsule(-0.1, 0, 0, 0.25, 0.38, rot=ALONG),
        sphere(0.52, 0, 0.4, 0.26, k=0.2),
        capsule(0.78, 0, 0.33, 0.12, 0.08, rot=ALONG),
        sphere(0.95, 0, 0.37, 0.06, mat=DARK),
        *both_sides(ellipsoid(0.46, 0.26, 0.36, 0.12, 0.06, 0.22, mat=DARK)),
        *_eyes(0.73, 0.12, 0.5, 0.05),
        *_legs(0.36, 0.16, -0.42, 0.1, 0.32),
        capsule(-0.72, 0, 0.26, 0.07, 0.2, rot=(0, -35, 0)),
    ],
    "duck": lambda: [
        ellipsoid(-0.08, 0, -0.25, 0.66, 0.44, 0.38),
        cone(-0.62, 0, 0.0, 0.22, 0.04, 0.2, rot=(0, -50, 0), k=0.1),
        sphere(0.36, 0, 0.38, 0.3, k=0.15),
        ellipsoid(0.72, 0, 0.32, 0.2, 0.16, 0.07, mat=ORANGE),
        *_eyes(0.56, 0.17, 0.48, 0.055),
        *both_sides(ellipsoid(-0.12, 0.4, -0.2, 0.34, 0.08, 0.2)),
    ],
    "fish": lambda: [
        ellipsoid(0.1, 0, 0, 0.66, 0.22, 0.42),
        box(-0.68, 0, 0.18, 0.12, 0.05, 0.26, 0.03, rot=(0, 35, 0)),
        box(-0.68, 0, -0.18, 0.12, 0.05, 0.26, 0.03, rot=(0, -35, 0)),
        box(0.02, 0, 0.42, 0.26, 0.045, 0.14, 0.03, rot=(0, 20, 0), mat=DARK),
        *_eyes(0.52, 0.16, 0.1, 0.075),
        *both_sides(ellipsoid(0.06, 0.24, -0.12, 0.18, 0.05, 0.1, rot=(0, 30, 0), mat=DARK)),
    ],
    "hat": lambda: [
        cylinder(0, 0, -0.35, 0.85, 0.05, 0.04),
        cone(0, 0, 0.08, 0.46, 0.36, 0.42),
        cylinder(0, 0, -0.2, 0.475, 0.1, mat=DARK),
    ],
    "apple": lambda: [
        ellipsoid(0, 0, 0, 0.64, 0.64, 0.58),
        cone(0, 0, 0.62, 0.02, 0.34, 0.16, **CUT),
        cylinder(0, 0, 0.62, 0.05, 0.2, rot=(0, 12, 0), mat=WOOD),
        ellipsoid(0.0, 0.22, 0.7, 0.12, 0.24, 0.05, rot=(25, 0, 0), mat=LEAF),
    ],
    "pear": lambda: [
        sphere(0, 0, -0.3, 0.5),
        sphere(0, 0, 0.38, 0.26, k=0.5),
        cylinder(0, 0, 0.78, 0.045, 0.16, rot=(0, 12, 0), mat=WOOD),
        ellipsoid(0.0, 0.18, 0.82, 0.1, 0.2, 0.045, rot=(25, 0, 0), mat=LEAF),
    ],
    "donut": lambda: [
        torus(0, 0, 0.05, 0.52, 0.28),
        torus(0, 0, -0.05, 0.52, 0.28, mat=CREAM),
    ],
    "hammer": lambda: [
        cylinder(0, 0, -0.25, 0.1, 0.7, mat=WOOD),
        cylinder(0, 0.05, 0.5, 0.2, 0.32, rot=ACROSS),
        cylinder(0, 0.4, 0.5, 0.26, 0.1, rot=ACROSS),
        box(0, -0.42, 0.5, 0.14, 0.22, 0.09, 0.02),
    ],
    "guitar": lambda: [
        cylinder(0, 0, -0.5, 0.44, 0.13, 0.03, rot=ALONG),
        cylinder(0, 0, 0.0, 0.33, 0.13, 0.03, rot=ALONG, k=0.1),
        cylinder(0.12, 0, -0.14, 0.15, 0.04, rot=ALONG, mat=DARK),
        box(0.1, 0, 0.6, 0.05, 0.075, 0.48, 0.02, mat=WOOD),
        box(0.08, 0, 1.12, 0.06, 0.15, 0.14, 0.03, mat=DARK),
        box(0.14, 0, -0.62, 0.03, 0.2, 0.05, 0.01, mat=DARK),
    ],
    "camera": lambda: [
        box(0, 0, 0, 0.26, 0.74, 0.44, 0.06),
        cylinder(0.4, 0, -0.04, 0.34, 0.2, rot=ALONG, mat=DARK),
        cylinder(0.58, 0, -0.04, 0.24, 0.05, rot=ALONG, mat=SKY),
        box(0, 0, 0.5, 0.18, 0.24, 0.13, 0.03),
        cylinder(0, 0.52, 0.48, 0.1, 0.08, mat=STEEL),
        *both_sides(box(0.0, 0.66, 0.05, 0.275, 0.04, 0.3, 0.02, mat=DARK)),
    ],
    "crown": lambda: [
        cylinder(0, 0, -0.12, 0.6, 0.3, 0.02),
        *[
            cone(0.52 * c, 0.52 * s, 0.36, 0.2, 0.03, 0.26)
            for c, s in ((1, 0), (0.5, 0.866), (-0.5, 0.866), (-1, 0), (-0.5, -0.866), (0.5, -0.866))
        ],
        cylinder(0, 0, 0.1, 0.48, 0.8, **CUT),
        *[
            sphere(0.58 * c, 0.58 * s, 0.64, 0.08, mat=SKY)
            for c, s in ((1, 0), (0.5, 0.866), (-0.5, 0.866), (-1, 0), (-0.5, -0.866), (0.5, -0.866))
        ],
        torus(0, 0, -0.38, 0.58, 0.06, mat=CREAM),
    ],
}

# Objects that look the same, or nearly so, from every side: their images show no view.
ROUND = frozenset((
    "bottle", "bucket", "goblet", "vase", "bowl", "table", "lamp", "candle", "lighthouse", "tree", "mushroom", "hat",
    "donut", "crown",
))  # fmt: skip


@cache
def packed(name: str) -> Packed:
    """The tracer's table of the object ``name``."""
    return pack(OBJECTS[name]())
