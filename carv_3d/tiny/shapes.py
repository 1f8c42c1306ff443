"""Signed distance fields as short tables of primitives, and the builders that write them.

An object is a list of primitives, joined in order; its front faces +x, its left is +y, up is +z (the cameras of
:mod:`carv_3d.scenes.cameras` see the front at azimuth 0). Sizes are free: :func:`pack` centres the object and
scales it into a sphere of radius :data:`RADIUS`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from carv_3d.tiny.primitives import BOX, CAPSULE, CONE, CYLINDER, ELLIPSOID, MAIN, RADIUS, ROW, SPHERE, TORUS, UNION


@dataclass(frozen=True)
class Prim:
    """One primitive: its kind, centre, up to four parameters, and how it joins those before it."""

    kind: int
    at: tuple[float, float, float]
    size: tuple[float, ...]
    rot: tuple[float, float, float] = (0.0, 0.0, 0.0)
    mat: int = MAIN
    op: int = UNION
    k: float = 0.0


def sphere(x: float, y: float, z: float, r: float, **kw) -> Prim:
    """Of radius ``r``."""
    return Prim(SPHERE, (x, y, z), (r,), **kw)


def box(x: float, y: float, z: float, hx: float, hy: float, hz: float, edge: float = 0.03, **kw) -> Prim:
    """Half extents, rounded by ``edge``."""
    return Prim(BOX, (x, y, z), (hx, hy, hz, edge), **kw)


def cylinder(x: float, y: float, z: float, r: float, h: float, edge: float = 0.02, **kw) -> Prim:
    """Along z, half height ``h``."""
    return Prim(CYLINDER, (x, y, z), (r, h, edge), **kw)


def cone(x: float, y: float, z: float, r1: float, r2: float, h: float, **kw) -> Prim:
    """Along z, radius ``r1`` below and ``r2`` above, half height ``h``."""
    return Prim(CONE, (x, y, z), (r1, r2, h), **kw)


def torus(x: float, y: float, z: float, big: float, r: float, **kw) -> Prim:
    """Around z."""
    return Prim(TORUS, (x, y, z), (big, r), **kw)


def capsule(x: float, y: float, z: float, r: float, h: float, **kw) -> Prim:
    """Along z, half length ``h`` between the centres of the caps."""
    return Prim(CAPSULE, (x, y, z), (r, h), **kw)


def ellipsoid(x: float, y: float, z: float, rx: float, ry: float, rz: float, **kw) -> Prim:
    """Of three radii along the axes."""
    return Prim(ELLIPSOID, (x, y, z), (rx, ry, rz), **kw)


def both_sides(*prims: Prim) -> list[Prim]:
    """Each primitive and its mirror image in the plane y = 0."""
    out = []
    for p in prims:
        x, y, z = p.at
        rx, ry, rz = p.rot
        out += [p, Prim(p.kind, (x, -y, z), p.size, (-rx, ry, -rz), p.mat, p.op, p.k)]
    return out


def _rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    """World from local, R = Rz Ry Rx."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return rz @ ry @ rx


@dataclass(frozen=True)
class Packed:
    """What the tracer reads: ``rows (P, ROW)``; a world point maps to ``p / scale + centre``."""

    rows: np.ndarray
    centre: np.ndarray
    scale: float


def pack(prims: list[Prim], radius: float = RADIUS) -> Packed:
    """Primitives -> the tracer's table, centred and scaled so that the object just fits ``radius``."""
    rows = np.zeros((len(prims), ROW))
    for row, p in zip(rows, prims):
        row[:4] = p.kind, p.op, p.mat, p.k
        row[4:7] = p.at
        row[7:16] = _rotation(p.rot).T.reshape(-1)  # local from world
        row[16 : 16 + len(p.size)] = p.size
    from carv_3d.tiny.tracer import distances  # numba is needed to render, not to read names

    axis = np.linspace(-1.6, 1.6, 81)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    inside = grid[distances(rows, np.zeros(3), 1.0, grid) < 0.02]
    centre = 0.5 * (inside.min(0) + inside.max(0))
    return Packed(rows, centre, float(radius / np.linalg.norm(inside - centre, axis=1).max()))
