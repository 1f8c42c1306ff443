"""Runs that are made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from carv_3d.compare.records import RunRecord


def rising(method: str, speed: float, prompt: str = "a", seed: int = 0, end: float = 10, noise: float = 0) -> RunRecord:
    """A run whose score rises as 1 - exp(-speed x)."""
    x = np.linspace(0, end, 21)
    y = 1 - np.exp(-speed * x) + noise
    return RunRecord(method, prompt, seed, Path(method), {"seconds": x, "steps": 4 * x}, {"iou": y})


def made_run(
    points: dict[float, float], method: str = "m", prompt: str = "a", seed: int = 0, **axes: float
) -> RunRecord:
    """A run with these scores at these seconds; `axes`: others, as multiples of the seconds."""
    x, y = np.array(list(points)), np.array(list(points.values()))
    scaled = {name: factor * x for name, factor in ({"steps": 1.0} | axes).items()}
    return RunRecord(method, prompt, seed, Path(method), {"seconds": x, **scaled}, {"iou": y})
