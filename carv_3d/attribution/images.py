"""Training images: a folder of them, or carv-tiny's own training set, known to the last pixel."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from carv_3d.errors import CarvError, shown
from carv_3d.io.files import explain_os_error, open_file, shown_path
from carv_3d.io.images import REPLACE, as_rgba, opened_image
from carv_3d.io.structured import parse_json, read_text

CAPTION_COLUMNS = ("text", "caption")  # of metadata.jsonl
MAX_CAPTION = 2**20  # bytes of a text file next to an image
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TINY_SEED = 1  # of the images that carv-tiny was trained on, see teachers.tiny.train
TINY_COUNT = 30_000
Image = NDArray[np.uint8]


class TrainingImages(Protocol):
    """Images with their captions."""

    name: str

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
    """The first `count` images of carv-tiny's training set, rendered into `folder` unless they are there."""

    name = "tiny"

    def __init__(self, folder: Path, count: int = TINY_COUNT, log: Callable[[str], None] = print) -> None:
        from carv_3d.tiny.dataset import build, source_hash

        if not 1 <= count <= TINY_COUNT:
            raise CarvError(f"carv-tiny was trained on {TINY_COUNT} images: items must be 1 .. {TINY_COUNT}.")
        try:
            self._images = build(folder, count, TINY_SEED, log=log)
        except OSError as error:
            raise explain_os_error(error, folder) from error
        self._source = source_hash()

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
        return f"tiny-{self._source}-{index}"

    def fingerprint(self) -> str:
        """Of the code that renders them, and how many."""
        return f"tiny-{self._source}-{len(self)}"


class FolderImages:
    """The images in a folder and below, by name.

    Captions come from `metadata.jsonl` (file_name, and text or caption), in the folder or below, or from a text file
    next to each image; "" without one.
    """

    def __init__(self, folder: Path, size: int, resize: bool = False, limit: int | None = None) -> None:
        """size: the model's. resize: cut the middle square of others and scale it.

        Raises CarvError for a folder that is missing or holds no image, and for one that is no image or of
        another size, before any of them is read whole.
        """
        if not folder.is_dir():
            raise CarvError(f"there is no folder {folder} of training images; name one with --training-images.")
        self.name, self._folder, self._size, self._resize = str(folder), folder, size, resize
        paths = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not _is_hidden(p.relative_to(folder)))
        every = sorted(p for p in paths if not p.is_dir())  # a pipe or a dangling link is refused when it is opened
        self._paths = every[:limit]
        if not self._paths:
            raise CarvError(f"{folder} holds no images ({', '.join(SUFFIXES)}); name another folder.")
        for path in self._paths:
            check_size(path, size, resize)
        listed = _read_metadata(folder, {_normal(p) for p in every})
        self._captions = [listed[_normal(p)] if _normal(p) in listed else _text_next_to(p) for p in self._paths]

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, index: int) -> str:
        """The path below the folder."""
        return shown_path(self._paths[index].relative_to(self._folder).as_posix())

    def image(self, index: int) -> Image:
        """(S, S, 3), of the size that was asked for."""
        return read_image(self._paths[index], self._size, self._resize)

    def caption(self, index: int) -> str:
        """From metadata.jsonl, or from the text file next to the image."""
        return self._captions[index]

    def labels(self, index: int) -> dict[str, str]:
        """Nothing is known."""
        return {}

    def digest(self, index: int) -> str:
        """Of the file's bytes, and how it is brought to the model's size."""
        return f"{self._size} {self._resize} {self._digests[index].hex()}"

    @functools.cached_property
    def _digests(self) -> list[bytes]:
        digests = []
        for path in self._paths:
            with open_file(path, REPLACE) as handle:
                digests.append(hashlib.sha256(handle.read()).digest())
        return digests

    def fingerprint(self) -> str:
        """Of every image's bytes and caption."""
        digest = hashlib.sha256(f"{self._size} {self._resize}".encode())
        for index, own in enumerate(self._digests):
            digest.update(own)
            digest.update(f"{self.key(index)}\0{self.caption(index)}\0".encode())
        return digest.hexdigest()[:16]


def _normal(path: Path) -> str:
    return os.path.normpath(path)


def _text_next_to(path: Path) -> str:
    text = path.with_suffix(".txt")
    return read_text(text, "mend it or delete it", MAX_CAPTION).strip() if text.exists() else ""


def check_size(path: Path, size: int, resize: bool) -> None:
    """Raises CarvError unless `path` is an image of size × size, or of any size where it may be resized."""
    with opened_image(path) as image:
        width, height = image.size
    if (width, height) != (size, size) and not resize:
        raise CarvError(
            f"{path} is {width}×{height} pixels and the model's images are {size}×{size}: pass --resize to cut the "
            "middle square and scale it, as long as its training did the same."
        )


def read_image(path: Path, size: int, resize: bool) -> Image:
    """(size, size, 3), upright; what is transparent is white."""
    from PIL import Image as Pillow

    check_size(path, size, resize)
    with opened_image(path) as opened:
        image = as_rgba(opened)
    white = Pillow.new("RGBA", image.size, (255, 255, 255, 255))
    flat = Pillow.alpha_composite(white, image).convert("RGB")
    if flat.size != (size, size):
        side = min(flat.size)
        left, top = (flat.width - side) // 2, (flat.height - side) // 2
        box = (left, top, left + side, top + side)
        flat = flat.resize((size, size), Pillow.Resampling.LANCZOS, box=box)
    return np.array(flat)


def _is_hidden(path: Path) -> bool:
    """Whether a name on the way begins with a dot: another program's copy (`._a.png`, `.ipynb_checkpoints`)."""
    return any(part.startswith(".") for part in path.parts)


def _read_metadata(folder: Path, images: set[str]) -> dict[str, str]:
    """The captions of every metadata.jsonl in a folder and below, whose file names count from its own folder.

    Raises:
        CarvError: a row without a file name or a caption, or a file none of whose rows is of an image in the folder.
    """
    captions: dict[str, str] = {}
    for path in sorted(p for p in folder.rglob("metadata.jsonl") if not _is_hidden(p.relative_to(folder))):
        fix = "mend it or delete it"
        rows = [
            _caption_row(parse_json(line, f"line {number} of {path}", fix), f"line {number} of {path}", fix)
            for number, line in enumerate(read_text(path, fix).split("\n"), 1)  # a caption may hold U+2028
            if line.strip()
        ]
        here = {_normal(path.parent / name): text for name, text in rows}
        if rows and not images & here.keys():
            raise CarvError(
                f"none of the {len(rows)} file names in {path} is an image of {folder} (the first is "
                f"{shown(rows[0][0])}); write them as seen from {path.parent}, or delete the file"
            )
        captions |= here
    return captions


def _caption_row(row: dict[str, Any], name: str, fix: str) -> tuple[str, str]:
    file = row.get("file_name")
    if not isinstance(file, str):
        raise CarvError(f"{name} has no file_name; {fix}")
    column = next((column for column in CAPTION_COLUMNS if column in row), None)
    if column is None:
        raise CarvError(f"{name} has {', '.join(row)[:80]} and no {' or '.join(CAPTION_COLUMNS)}; {fix}")
    text = row[column]
    if not isinstance(text, str | None):
        raise CarvError(f"{name} has {column} {shown(text)}; it must be text; {fix}")
    return file, text or ""
