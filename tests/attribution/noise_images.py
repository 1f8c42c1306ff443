"""Training images of noise, and `carv attribute` in words that make it small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SMALL = ["num_draws=4", "query_draws=16", "dim=64"]


def save(path: Path, seed: int) -> None:
    """A PNG of 16 x 16, whose folder is made where it is missing."""
    array = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(array).save(path)


def words(query: Path | str, images: Path | str, model: Path, *more: str) -> list[str]:
    """Of a small attribution of a query to the images of a folder, by cosines unless another method is among `more`."""
    method = [] if "--method" in more else ["--method", "cosine"]
    named = ["--model", str(model), "--training-images", str(images)]
    return ["attribute", str(query), *named, *SMALL, *method, *more]
