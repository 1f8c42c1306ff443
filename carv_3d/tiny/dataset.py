"""The training set of carv-tiny: images on white with their coverage, what is in each, known to the last pixel."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from carv_3d.errors import CarvError
from carv_3d.io.files import write_atomic
from carv_3d.io.structured import read_json
from carv_3d.tiny import objects
from carv_3d.tiny.primitives import ACCENTS, RADIUS
from carv_3d.tiny.render import DISTANCE, FOVY, Shot, render
from carv_3d.tiny.vocabulary import COLORS, MATERIALS, OBJECTS, held_out_combinations

MATERIAL_SHARE = (0.5, 0.25, 0.25)
COLORINGS = 3  # of every view: the rays are the expensive part
RECIPE = 1  # to be raised when the tracer, the packing or `draw_view` makes other images of the same tables
NAMES = {"9b77248d88d2": "47c5220b6e14"}  # hash of the tables: the name that version 0.1.0 gave to the same images
RENAMED = {"colour": "color", "finish": "material", "seen_only": "training_only"}  # in shots.json of version 0.1.0


def source_hash() -> str:
    """Names what the images are made from: the objects' tables, the vocabulary, the ranges and the recipe.

    Stores and folders carry it, so it does not depend on how the source is written.
    """
    tables = {name: [astuple(primitive) for primitive in make()] for name, make in objects.OBJECTS.items()}
    held_out = sorted(held_out_combinations())
    ranges = (RADIUS, ACCENTS.tolist(), DISTANCE, FOVY, MATERIAL_SHARE, COLORINGS)
    recipe = (RECIPE, tables, list(OBJECTS), list(COLORS.items()), MATERIALS, held_out, ranges)
    digest = hashlib.sha256(repr(_rounded(recipe)).encode()).hexdigest()[:12]
    return NAMES.get(digest, digest)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return [(key, _rounded(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return round(float(value), 6) + 0.0 if isinstance(value, (int, float)) else value  # no -0.0


def draw_view(rng: random.Random, colors: dict[str, list[str]]) -> list[Shot]:
    """A random view of the training ranges, a quarter of them from above, in some of the object's colors."""
    obj = rng.choice(list(colors))
    high = rng.random() < 0.25
    view = Shot(
        obj,
        "",
        elevation=rng.uniform(45, 90) if high else rng.uniform(-10, 45),
        azimuth=rng.uniform(0, 360),
        distance=rng.uniform(*DISTANCE),
        fovy=rng.uniform(*FOVY),
    )
    tints = rng.sample(colors[obj], COLORINGS)
    return [replace(view, color=c, material=rng.choices(MATERIALS, MATERIAL_SHARE)[0]) for c in tints]


def object_colors(training_only: bool = True) -> dict[str, list[str]]:
    """The colors in which training shows each object; all of them where ``training_only`` is false."""
    held_out = held_out_combinations() if training_only else frozenset()
    return {o: [c for c in COLORS if (o, c) not in held_out] for o in OBJECTS}


def draw_shots(count: int, seed: int, training_only: bool = True) -> list[Shot]:
    """What is in each image of a training set; the first shots do not depend on how many there are."""
    rng, colors = random.Random(seed), object_colors(training_only)
    return [s for _ in range(math.ceil(count / COLORINGS)) for s in draw_view(rng, colors)][:count]


@dataclass
class Images:
    """``rgb (N, S, S, 3)`` on white and ``alpha (N, S, S)``, uint8, memory-mapped; ``shots`` says what is in each."""

    rgb: np.ndarray
    alpha: np.ndarray
    shots: list[Shot]

    def on(self, index: np.ndarray, background: np.ndarray) -> np.ndarray:
        """Images ``index (B,)`` as float32 ``(B, S, S, 3)`` in [0, 1] on ``background (B, 3)``."""
        rgb = self.rgb[index].astype(np.float32) / 255
        clear = 1 - self.alpha[index].astype(np.float32)[..., None] / 255
        return rgb - clear * (1 - background[:, None, None, :].astype(np.float32))


def build(
    folder: Path,
    count: int,
    seed: int,
    training_only: bool = True,
    log: Callable[[str], None] = print,
    size: int = 64,
) -> Images:
    """Render images into a folder, or open those that a call with the same arguments has left there.

    Args:
        folder: for shots.json, rgb.npy and alpha.npy.
        count: how many images.
        seed: of the views, colors and materials.
        training_only: without the held-out combinations.
        log: is given the progress.
        size: rows and columns of an image.

    Raises:
        CarvError: what is in the folder is damaged.
    """
    expected: dict[str, Any] = {"count": count, "seed": seed, "training_only": training_only, "objects": source_hash()}
    if size != 64:  # folders of the first version do not name it
        expected["size"] = size
    done = folder / "shots.json"
    if done.exists():
        stored = read_json(done, f"delete {folder}, and its images are made again")
        try:
            if _renamed(stored["made_with"]) == expected:
                rgb, alpha = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("rgb", "alpha"))
                shots = [Shot(**{**_renamed(s), "background": tuple(s["background"])}) for s in stored["shots"]]
                return Images(rgb, alpha, shots)
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # ValueError: numpy's, for a cut off array
            raise CarvError(f"{folder} is damaged; delete it, and its images are made again") from error
    folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    shots = draw_shots(count, seed, training_only)
    rgb = np.lib.format.open_memmap(folder / "rgb.npy", "w+", np.uint8, (count, size, size, 3))
    alpha = np.lib.format.open_memmap(folder / "alpha.npy", "w+", np.uint8, (count, size, size))
    for i in range(0, count, 900):
        rgb[i : i + 900], alpha[i : i + 900] = render(shots[i : i + 900], size)
        log(f"rendered {min(i + 900, count)} of {count} images")
    rgb.flush()
    alpha.flush()
    write_atomic(done, json.dumps({"made_with": expected, "shots": [asdict(s) for s in shots]}))
    return build(folder, count, seed, training_only, log, size)


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
    return {RENAMED.get(key, key): value for key, value in values.items()}
