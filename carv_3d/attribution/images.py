"""Training images: what is asked of any, carv-tiny's own set, known to the last pixel, and how a file is read."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from carv_3d.attribution.data_report import DataReport
from carv_3d.errors import CarvError
from carv_3d.io.files import explain_os_error, open_file
from carv_3d.io.images import MAX_BYTES, REPLACE, as_rgba, decoded_image, opened_image

TINY_SEEDS = {
    64: 1,
    128: 3,
}  # by size: of the images of carv-tiny's first training, and of carv-tiny-128's
TINY_COUNT = 30_000
Image = NDArray[np.uint8]


def tiny_size(size: int) -> int:
    """In which a model of images of `size` is given carv-tiny's: 128 for 128, carv-tiny-128's own set, else 64."""
    return size if size in TINY_SEEDS else 64


class TrainingImages(Protocol):
    """Images with their captions."""

    name: str
    report: DataReport

    def __len__(self) -> int: ...
    def key(self, index: int) -> str:
        """The image's name for good."""

    def image(self, index: int) -> Image:
        """(S, S, 3) in 0 .. 255."""

    def caption(self, index: int) -> str:
        """The text that goes with the image, or ""."""

    def labels(self, index: int) -> dict[str, str]:
        """What else is known of the image, such as its object; {} if nothing is."""

    def digest(self, index: int) -> str:
        """Of the image itself, as it is seen by the model."""

    def fingerprint(self) -> str:
        """A hash of all images and captions."""


class TinyImages:
    """The first `count` images of carv-tiny's training set, rendered into `folder` unless they are there.

    Of carv-tiny-128's for a `size` of 128.
    """

    name = "tiny"

    def __init__(
        self, folder: Path, count: int = TINY_COUNT, log: Callable[[str], None] = print, size: int = 64
    ) -> None:
        from carv_3d.tiny.dataset import build

        if not 1 <= count <= TINY_COUNT:
            raise CarvError(f"carv-tiny was trained on {TINY_COUNT} images: items must be 1 .. {TINY_COUNT}.")
        try:
            self._images = build(folder, count, TINY_SEEDS[size], log=log, size=size)
        except OSError as error:
            raise explain_os_error(error, folder) from error
        self._begin(size)

    def _begin(self, size: int) -> None:
        from carv_3d.tiny.dataset import source_hash

        self.report = DataReport()
        self._set = f"tiny-{source_hash()}" if size == 64 else f"tiny-{size}-{source_hash()}"

    def __len__(self) -> int:
        return len(self._images.shots)

    def key(self, index: int) -> str:
        """As "tiny-17"."""
        return f"tiny-{index}"

    def image(self, index: int) -> Image:
        """(S, S, 3), of carv-tiny's size."""
        return np.asarray(self._images.rgb[index])

    def caption(self, index: int) -> str:
        """As a caption of the training, without its synonyms: "a striped red mug, left view"."""
        from carv_3d.scenes.view_phrases import view_phrase
        from carv_3d.tiny.vocabulary import OBJECTS

        shot = self._images.shots[index]
        material = "" if shot.material == "plain" else f"{shot.material} "
        text = f"a {material}{shot.color} {OBJECTS[shot.obj][0]}, {view_phrase(shot.elevation, shot.azimuth)}"
        return re.sub(r"\ba (?=[aeiou])", "an ", text)

    def labels(self, index: int) -> dict[str, str]:
        """Object, color and material."""
        shot = self._images.shots[index]
        return {"object": shot.obj, "color": shot.color, "material": shot.material}

    def digest(self, index: int) -> str:
        """By the code that renders it."""
        return f"{self._set}-{index}"

    def fingerprint(self) -> str:
        """Of the code that renders them, and how many."""
        return f"{self._set}-{len(self)}"


class WrongSizeError(CarvError):
    """An image of another size than the model's, which may not be cut."""


def check_size(path: Path, size: int, resize: bool) -> None:
    """Raises CarvError unless `path` is an image of size × size, or of any size where it may be resized."""
    with opened_image(path) as image:
        _check_size(image, str(path), size, resize)


def _check_size(image: Any, name: str, size: int, resize: bool) -> None:
    width, height = image.size
    if (width, height) != (size, size) and not resize:
        raise WrongSizeError(
            f"{name} is {width}×{height} pixels and the model's images are {size}×{size}: pass --resize to cut the "
            "middle square and scale it, as long as its training did the same."
        )


def read_image(path: Path, size: int, resize: bool) -> Image:
    """(size, size, 3), upright; what is transparent is white."""
    with open_file(path, REPLACE, MAX_BYTES) as handle:
        return model_image(handle.read(MAX_BYTES), str(path), size, resize)[0]


def model_image(data: bytes, name: str, size: int, resize: bool) -> tuple[Image, bool]:
    """A file's image as the model is given it: upright, what is transparent white, of 8 bits a channel.

    Args:
        data: the file's bytes.
        name: for messages.
        size: the model's.
        resize: cut the middle square of others and scale it.

    Returns:
        (size, size, 3), and whether any of it was transparent.

    Raises:
        CarvError: no image that can be read; WrongSizeError for one of another size.
    """
    from PIL import Image as Pillow

    with decoded_image(io.BytesIO(data), name) as opened:
        _check_size(opened, name, size, resize)
        image = as_rgba(opened)
    transparent = image.getextrema()[3][0] < 255
    white = Pillow.new("RGBA", image.size, (255, 255, 255, 255))
    flat = Pillow.alpha_composite(white, image).convert("RGB")
    if flat.size != (size, size):
        side = min(flat.size)
        left, top = (flat.width - side) // 2, (flat.height - side) // 2
        box = (left, top, left + side, top + side)
        flat = flat.resize((size, size), Pillow.Resampling.LANCZOS, box=box)
    return np.array(flat), transparent
