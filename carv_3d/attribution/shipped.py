"""The gradients of carv-tiny's training images that come with the package, so that the first answer takes seconds.

`benchmarks/attribution_store.py` makes the file. It holds for each image its groups of projected gradients as int8,
with one scale a row: sigma / STEPS, sigma the row's standard deviation. Rounding adds 1 / (12 STEPS^2) of a row's
variance, 1.3 %, far below the noise of its draws. What the rows depend on stands in the file as it does in a store's
metadata, and rows of anything else are not used.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from carv_3d.attribution.features import FeatureMaker
from carv_3d.attribution.images import TINY_COUNT, TINY_SEEDS, Image, TinyImages
from carv_3d.attribution.store import as_stored
from carv_3d.errors import CarvError
from carv_3d.io.files import write_via
from carv_3d.io.structured import differing_keys

PATH = Path(__file__).resolve().parents[1] / "assets" / "attribution" / "carv-tiny.npz"
STEPS = 2.5  # of the code in a row's standard deviation
FORMAT = 1


class DrawnImages(TinyImages):
    """As `TinyImages`, each image rendered when it is asked for: it takes a few milliseconds, and no disk."""

    def __init__(self, index: Iterable[int], size: int = 64) -> None:
        """index: which of the training images, in order; size: as of `TinyImages`."""
        from carv_3d.tiny.dataset import Images, draw_shots

        none, shots = np.zeros((0, size, size, 3), np.uint8), draw_shots(TINY_COUNT, TINY_SEEDS[size])
        self._index = [int(i) for i in index]
        self._images = Images(none, none[..., 0], [shots[i] for i in self._index])
        self._begin(size)

    def key(self, index: int) -> str:
        """As "tiny-17", its number among all."""
        return super().key(self._index[index])

    def digest(self, index: int) -> str:
        """By the code that renders it."""
        return super().digest(self._index[index])

    def fingerprint(self) -> str:
        """Of the code that renders them, and which."""
        return f"{super().fingerprint()}-{zlib.crc32(np.asarray(self._index, np.int64).tobytes()):08x}"

    def image(self, index: int) -> Image:
        """(S, S, 3), of carv-tiny's size."""
        from carv_3d.tiny.render import render

        return np.asarray(render([self._images.shots[index]], self._images.rgb.shape[1])[0][0])


@dataclass(frozen=True)
class ShippedRows:
    """Gradients that came with the package.

    Attributes:
        rows: (N, G, d) float32.
        index: (N,) which of the training images they are of.
        ridge: of the metric that they are compared in.
        key: what they depend on.
    """

    rows: Tensor
    index: NDArray[np.int64]
    ridge: float
    key: Mapping[str, Any]

    def unfit(self, expected: Mapping[str, Any]) -> str:
        """Why the rows are not those of another key, in a sentence; "" where they are."""
        for name in differing_keys(self.key, dict(expected)):
            return (
                f"The gradients that come with carv-tiny were made with other values of {name}, so they are made anew."
            )
        return ""


def key(maker: FeatureMaker, models: list[str]) -> dict[str, Any]:
    """What a row depends on besides its image. models: fingerprints of the image and text encoders."""
    from carv_3d.tiny.dataset import source_hash

    return as_stored({"format": FORMAT, "images": source_hash(), "encoders": models, **maker.own_metadata()})


def save(path: Path, rows: Any, index: Any, key: Mapping[str, Any], ridge: float) -> None:
    """Writes rows (N, G, d) of the images index (N,) for `load`."""
    rows = np.asarray(rows, np.float32)
    scales = rows.std(-1) / STEPS
    codes = np.clip(np.rint(rows / np.maximum(scales, 1e-30)[..., None]), -127, 127).astype(np.int8)
    text = json.dumps({"key": dict(key), "ridge": ridge})

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez_compressed(
                file, codes=codes, scales=scales, index=index, about=np.frombuffer(text.encode(), np.uint8)
            )

    write_via(path, write)


def load(expected: Mapping[str, Any], count: int | None = None, path: Path = PATH) -> ShippedRows | str:
    """The rows of the first `count` images (all of the file's if None), or why there are none, in a sentence.

    Raises:
        CarvError: the file is damaged.
    """
    shipped = read(count, path)
    return shipped if isinstance(shipped, str) else shipped.unfit(expected) or shipped


def read(count: int | None = None, path: Path = PATH) -> ShippedRows | str:
    """As `load`, whatever the rows were made of."""
    if not path.exists():
        return "No gradients came with this copy of the package."
    try:
        with np.load(path) as stored:
            about = json.loads(stored["about"].tobytes())
            key, ridge = dict(about["key"]), float(about["ridge"])
            codes, scales, index = stored["codes"], stored["scales"], stored["index"].astype(np.int64)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise CarvError(f"{path} is damaged; install the package again, or delete the file") from error
    if count is not None and not np.array_equal(index[:count], np.arange(count)):
        return f"Gradients of the first {count:,} images do not come with carv-tiny, so they are made now."
    part = slice(0, count)
    rows = torch.from_numpy(codes[part] * scales[part][..., None].astype(np.float32))
    return ShippedRows(rows, index[part], ridge, key)
