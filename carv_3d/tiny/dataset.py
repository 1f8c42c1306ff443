"""The training set of carv-tiny: images on white with their coverage, what is in each, known to the last pixel."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from carv_3d.tiny.render import DISTANCE, FOVY, Shot, render
from carv_3d.tiny.vocabulary import COLORS, MATERIALS, OBJECTS, held_out_combinations

MATERIAL_SHARE = (0.5, 0.25, 0.25)


def source_hash() -> str:
    """Of what the images are made from: a change of an object or of the tracer makes new ones."""
    here = Path(__file__).parent
    names = ("shapes.py", "objects.py", "tracer.py", "render.py", "dataset.py")
    text = "".join("".join((here / n).read_text().split()) for n in names)
    text += repr((list(OBJECTS), COLORS))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


COLORINGS = 3  # of every view: the rays are the dear part


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


def colors_of(training_only: bool = True) -> dict[str, list[str]]:
    """The colors in which training shows each object; all of them where ``training_only`` is false."""
    held_out = held_out_combinations() if training_only else frozenset()
    return {o: [c for c in COLORS if (o, c) not in held_out] for o in OBJECTS}


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
    folder: Path, count: int, seed: int, training_only: bool = True, log: Callable[[str], None] = print
) -> Images:
    """Render ``count`` images into ``folder``, or open those that a finished call left there (same arguments)."""
    expected = {"count": count, "seed": seed, "training_only": training_only, "objects": source_hash()}
    done = folder / "shots.json"
    if done.exists():
        stored = json.loads(done.read_text())
        if stored["made_with"] == expected:
            return Images(
                np.load(folder / "rgb.npy", mmap_mode="r"),
                np.load(folder / "alpha.npy", mmap_mode="r"),
                [Shot(**{**s, "background": tuple(s["background"])}) for s in stored["shots"]],
            )
    folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    rng, colors = random.Random(seed), colors_of(training_only)
    shots = [s for _ in range(math.ceil(count / COLORINGS)) for s in draw_view(rng, colors)][:count]
    rgb = np.lib.format.open_memmap(folder / "rgb.npy", "w+", np.uint8, (count, 64, 64, 3))
    alpha = np.lib.format.open_memmap(folder / "alpha.npy", "w+", np.uint8, (count, 64, 64))
    for i in range(0, count, 900):
        rgb[i : i + 900], alpha[i : i + 900] = render(shots[i : i + 900])
        log(f"rendered {min(i + 900, count)} of {count} images")
    rgb.flush()
    alpha.flush()
    done.write_text(json.dumps({"made_with": expected, "shots": [asdict(s) for s in shots]}))
    return build(folder, count, seed, training_only, log)
