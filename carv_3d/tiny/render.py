"""Images of the objects from any camera: the teacher's training data and the ground truth of the benchmarks."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from carv_3d.tiny.objects import packed
from carv_3d.tiny.primitives import ACCENTS
from carv_3d.tiny.tracer import trace
from carv_3d.tiny.vocabulary import COLORS, MATERIALS

DISTANCE, FOVY = (2.5, 3.0), (36.0, 42.0)  # ranges of the training cameras: world units, degrees


@dataclass(frozen=True)
class Shot:
    """One image to take: what, and from where (degrees; front at azimuth 0), on which background."""

    obj: str
    color: str
    material: str = "plain"
    elevation: float = 15.0
    azimuth: float = 30.0
    distance: float = 2.75
    fovy: float = 39.0
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)


def second_color(color: str) -> np.ndarray:
    """What stripes and spots are painted in: cream white on dark and strong colors, near black on light ones."""
    r, g, b = COLORS[color]
    light = 0.3 * r + 0.59 * g + 0.11 * b > 0.58
    return np.array([0.14, 0.14, 0.16] if light else [0.96, 0.95, 0.92])


def _pose(elevation: float, azimuth: float, distance: float) -> np.ndarray:
    el, az = math.radians(elevation), math.radians(azimuth)
    back = np.array([math.cos(el) * math.cos(az), math.cos(el) * math.sin(az), math.sin(el)])
    right = np.array([-math.sin(az), math.cos(az), 0.0])
    return np.stack([right, np.cross(back, right), -back, back * distance])


def render_view(shots: list[Shot], size: int = 64, samples: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Colorings of one view, traced once: the shots differ in color, material and background alone.

    Returns:
        ``rgb (C, size, size, 3)``, float in [0, 1], and the coverage ``alpha (size, size)``.
    """
    first = shots[0]
    obj = packed(first.obj)
    palettes = np.stack([ACCENTS] * len(shots))
    palettes[:, 0] = [COLORS[s.color] for s in shots]
    rgb, alpha = np.empty((len(shots), size, size, 3)), np.empty((size, size))
    trace(
        obj.rows, obj.centre, obj.scale, palettes, np.stack([second_color(s.color) for s in shots]),
        np.array([MATERIALS.index(s.material) for s in shots]), _pose(first.elevation, first.azimuth, first.distance),
        1.0 / math.tan(math.radians(first.fovy) / 2), size, samples,
        np.array([s.background for s in shots]), rgb, alpha,
    )  # fmt: skip
    return rgb, alpha


def render(
    shots: list[Shot], size: int = 64, samples: int = 2, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Images of shots; neighbors in the list that share their view are traced once.

    Args:
        shots: N of them.
        size: rows and columns of an image.
        samples: rays along each side of a pixel.
        threads: at work; None is one a core.

    Returns:
        ``rgb (N, size, size, 3)`` and ``alpha (N, size, size)``, both uint8.
    """
    views: list[list[int]] = []
    for i, s in enumerate(shots):
        packed(s.obj)
        if views and _view(shots[views[-1][0]]) == _view(s):
            views[-1].append(i)
        else:
            views.append([i])
    rgb, alpha = np.empty((len(shots), size, size, 3), np.uint8), np.empty((len(shots), size, size), np.uint8)

    def work(index: list[int]) -> None:
        c, a = render_view([shots[i] for i in index], size, samples)
        rgb[index], alpha[index] = np.rint(c * 255), np.rint(a * 255)

    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        list(pool.map(work, views))
    return rgb, alpha


def _view(s: Shot) -> tuple:
    return s.obj, s.elevation, s.azimuth, s.distance, s.fovy
