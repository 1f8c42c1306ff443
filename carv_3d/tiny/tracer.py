"""Sphere tracing of packed signed distance fields (:mod:`.shapes`), compiled by numba, one thread an image.

Threads come from the caller's pool (the kernels release the GIL): numba's own parallel pool and torch's fight.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from carv_3d.tiny.primitives import BOX, CAPSULE, CONE, CYLINDER, INTERSECT, SPHERE, SUBTRACT, TORUS

PLAIN, STRIPED, SPOTTED = range(3)
AMBIENT = 0.52  # the light sits at the camera, so nothing is baked into the object
REACH = 0.76  # squared radius of the ball that holds every object


@njit(cache=True, nogil=True, fastmath=True)
def _primitive(row, x, y, z):
    dx, dy, dz = x - row[4], y - row[5], z - row[6]
    px = row[7] * dx + row[8] * dy + row[9] * dz
    py = row[10] * dx + row[11] * dy + row[12] * dz
    pz = row[13] * dx + row[14] * dy + row[15] * dz
    a, b, c, d = row[16], row[17], row[18], row[19]
    kind = int(row[0])
    if kind == SPHERE:
        return math.sqrt(px * px + py * py + pz * pz) - a
    if kind == BOX:
        qx, qy, qz = abs(px) - a + d, abs(py) - b + d, abs(pz) - c + d
        outside = math.sqrt(max(qx, 0.0) ** 2 + max(qy, 0.0) ** 2 + max(qz, 0.0) ** 2)
        return outside + min(max(qx, max(qy, qz)), 0.0) - d
    if kind == CYLINDER:
        qr, qz = math.sqrt(px * px + py * py) - a + c, abs(pz) - b + c
        return min(max(qr, qz), 0.0) + math.sqrt(max(qr, 0.0) ** 2 + max(qz, 0.0) ** 2) - c
    if kind == CONE:  # capped cone, exact
        q = math.sqrt(px * px + py * py)
        ca_x = q - min(q, a if pz < 0.0 else b)
        ca_y = abs(pz) - c
        k2x, k2y = b - a, 2.0 * c
        t = ((b - q) * k2x + (c - pz) * k2y) / (k2x * k2x + k2y * k2y)
        t = min(max(t, 0.0), 1.0)
        cb_x, cb_y = q - b + k2x * t, pz - c + k2y * t
        s = -1.0 if (cb_x < 0.0 and ca_y < 0.0) else 1.0
        return s * math.sqrt(min(ca_x * ca_x + ca_y * ca_y, cb_x * cb_x + cb_y * cb_y))
    if kind == TORUS:
        q = math.sqrt(px * px + py * py) - a
        return math.sqrt(q * q + pz * pz) - b
    if kind == CAPSULE:
        pz -= min(max(pz, -b), b)
        return math.sqrt(px * px + py * py + pz * pz) - a
    # ellipsoid, the usual bound
    k0 = math.sqrt((px / a) ** 2 + (py / b) ** 2 + (pz / c) ** 2)
    k1 = math.sqrt((px / (a * a)) ** 2 + (py / (b * b)) ** 2 + (pz / (c * c)) ** 2)
    return k0 * (k0 - 1.0) / max(k1, 1e-9)


@njit(cache=True, nogil=True, fastmath=True)
def _distance(rows, centre, scale, x, y, z):
    """Distance and part at a world point."""
    x, y, z = x / scale + centre[0], y / scale + centre[1], z / scale + centre[2]
    best, part = 1e9, 0
    for i in range(rows.shape[0]):
        row = rows[i]
        dist = _primitive(row, x, y, z)
        op, k = int(row[1]), row[3]
        if op == SUBTRACT:
            best = max(best, -dist)
        elif op == INTERSECT:
            best = max(best, dist)
        else:
            if dist < best:
                part = int(row[2])
            if k > 0.0:
                h = max(k - abs(best - dist), 0.0) / k
                best = min(best, dist) - h * h * k * 0.25
            else:
                best = min(best, dist)
    return best * scale, part


@njit(cache=True, nogil=True)
def distances(rows, centre, scale, points):
    """Signed distances ``(N,)`` at world ``points (N, 3)``."""
    out = np.empty(points.shape[0])
    for i in range(points.shape[0]):
        out[i] = _distance(rows, centre, scale, points[i, 0], points[i, 1], points[i, 2])[0]
    return out


@njit(cache=True, nogil=True, fastmath=True)
def _second(material, x, y, z):
    """Whether the material paints the second color at a world point."""
    if material == STRIPED:
        return (z / 0.30) % 1.0 < 0.38
    if material == SPOTTED:  # balls on a body-centred lattice
        step = 0.34
        for shift in range(2):
            s = 0.5 * shift
            ux = (x / step + s) - math.floor(x / step + s) - 0.5
            uy = (y / step + s) - math.floor(y / step + s) - 0.5
            uz = (z / step + s) - math.floor(z / step + s) - 0.5
            if ux * ux + uy * uy + uz * uz < 0.33 * 0.33:
                return True
    return False


@njit(cache=True, nogil=True, fastmath=True)
def trace(rows, centre, scale, palettes, seconds, materials, pose, focal, size, samples, backgrounds, rgb, alpha):
    """One view in C colorings: the rays are traced once. So many arguments, since numba takes arrays and numbers alone.

    In order: the packed object (rows, its centre (3,) and scale, see `shapes.pack`); palettes (C, M, 3) by part;
    seconds (C, 3), the colors of stripes and spots, and materials (C,), their indices; pose (4, 3), right, up, forward
    and position; focal, in units of half the image; size, pixels along a side; samples, rays along a side of a pixel;
    backgrounds (C, 3). Overwritten: rgb (C, size, size, 3) in [0, 1] and alpha (size, size), the coverage.
    """
    n, weight = size * samples, 1.0 / (samples * samples)
    rgb[:] = 0.0
    alpha[:] = 0.0
    for i in range(n):
        for j in range(n):
            row, col = i // samples, j // samples
            v, u = 1.0 - 2.0 * (i + 0.5) / n, 2.0 * (j + 0.5) / n - 1.0
            dx = pose[0, 0] * u + pose[1, 0] * v + pose[2, 0] * focal
            dy = pose[0, 1] * u + pose[1, 1] * v + pose[2, 1] * focal
            dz = pose[0, 2] * u + pose[1, 2] * v + pose[2, 2] * focal
            norm = math.sqrt(dx * dx + dy * dy + dz * dz)
            dx, dy, dz = dx / norm, dy / norm, dz / norm
            ox, oy, oz = pose[3, 0], pose[3, 1], pose[3, 2]
            along = -(ox * dx + oy * dy + oz * dz)
            miss2 = ox * ox + oy * oy + oz * oz - along * along
            hit, t, part = False, 0.0, 0
            if miss2 < REACH:
                half = math.sqrt(REACH - miss2)
                t, end = along - half, along + half
                for _ in range(64):
                    dist, part = _distance(rows, centre, scale, ox + t * dx, oy + t * dy, oz + t * dz)
                    if dist < 0.004:
                        hit = True
                        break
                    t += 0.95 * dist
                    if t > end:
                        break
            if not hit:
                for c in range(rgb.shape[0]):
                    for ch in range(3):
                        rgb[c, row, col, ch] += weight * backgrounds[c, ch]
                continue
            alpha[row, col] += weight
            x, y, z, e = ox + t * dx, oy + t * dy, oz + t * dz, 0.004
            here = _distance(rows, centre, scale, x, y, z)[0]
            gx = _distance(rows, centre, scale, x + e, y, z)[0] - here
            gy = _distance(rows, centre, scale, x, y + e, z)[0] - here
            gz = _distance(rows, centre, scale, x, y, z + e)[0] - here
            g = math.sqrt(gx * gx + gy * gy + gz * gz) + 1e-12
            shade = weight * (AMBIENT + (1.0 - AMBIENT) * max(0.0, -(gx * dx + gy * dy + gz * dz) / g))
            for c in range(rgb.shape[0]):
                if part == 0 and _second(materials[c], x, y, z):
                    for ch in range(3):
                        rgb[c, row, col, ch] += shade * seconds[c, ch]
                else:
                    for ch in range(3):
                        rgb[c, row, col, ch] += shade * palettes[c, part, ch]
