"""Training images: a folder of them, or carv-tiny's own training set, known to the last pixel."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from carv_3d.errors import CarvError
from carv_3d.io.files import explain_os_error
from carv_3d.io.structured import parse_json, read_text

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

    def fingerprint(self) -> str:
        """Of the code that renders them, and how many."""
        return f"tiny-{self._source}-{len(self)}"


class FolderImages:
    """The images in a folder and below, by name.

    Captions come from `metadata.jsonl` (file_name, text), or from a text file next to each image; "" without one.
    """

    def __init__(self, folder: Path, size: int, resize: bool = False, limit: int | None = None) -> None:
        """size: the model's. resize: cut the middle square of others and scale it.

        Raises CarvError for a folder that is missing or holds no image, and for one that is no image or of
        another size, before any of them is read whole.
        """
        if not folder.is_dir():
            raise CarvError(f"there is no folder {folder} of training images; name one with --training-images.")
        self.name, self._folder, self._size, self._resize = str(folder), folder, size, resize
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        self._paths = paths[:limit]
        if not self._paths:
            raise CarvError(f"{folder} holds no images ({', '.join(SUFFIXES)}); name another folder.")
        for path in self._paths:
            check_size(path, size, resize)
        self._captions = _read_metadata(folder)

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, index: int) -> str:
        """The path below the folder."""
        return self._paths[index].relative_to(self._folder).as_posix()

    def image(self, index: int) -> Image:
        """(S, S, 3), of the size that was asked for."""
        return read_image(self._paths[index], self._size, self._resize)

    def caption(self, index: int) -> str:
        """From metadata.jsonl, or from the text file next to the image."""
        key = self.key(index)
        if key in self._captions:
            return self._captions[key]
        text = self._paths[index].with_suffix(".txt")
        return text.read_text(encoding="utf-8", errors="replace").strip() if text.exists() else ""

    def labels(self, index: int) -> dict[str, str]:
        """Nothing is known."""
        return {}

    def fingerprint(self) -> str:
        """Of every image's bytes and caption."""
        digest = hashlib.sha256(f"{self._size} {self._resize}".encode())
        for index, path in enumerate(self._paths):
            try:
                digest.update(hashlib.sha256(path.read_bytes()).digest())
            except OSError as error:
                raise explain_os_error(error, path, "read") from error
            digest.update(f"{self.key(index)}\0{self.caption(index)}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]


def check_size(path: Path, size: int, resize: bool) -> None:
    """Raises CarvError unless `path` is an image of size × size, or of any size where it may be resized."""
    width, height = _open(path).size
    if (width, height) != (size, size) and not resize:
        raise CarvError(
            f"{path} is {width}×{height} pixels and the model's images are {size}×{size}: pass --resize to cut the "
            "middle square and scale it, as long as its training did the same."
        )


def read_image(path: Path, size: int, resize: bool) -> Image:
    """(size, size, 3); what is transparent is white."""
    from PIL import Image as Pillow

    check_size(path, size, resize)
    try:
        image = _open(path).convert("RGBA")
    except OSError as error:
        raise CarvError(
            f"{path} is cut short or damaged ({error}): replace it, or take it out of the folder."
        ) from error
    white = Pillow.new("RGBA", image.size, (255, 255, 255, 255))
    flat = Pillow.alpha_composite(white, image).convert("RGB")
    if flat.size != (size, size):
        side = min(flat.size)
        left, top = (flat.width - side) // 2, (flat.height - side) // 2
        box = (left, top, left + side, top + side)
        flat = flat.resize((size, size), Pillow.Resampling.LANCZOS, box=box)
    return np.array(flat)


def _open(path: Path) -> Any:
    from PIL import Image as Pillow

    try:
        return Pillow.open(path)
    except Pillow.DecompressionBombError:
        raise CarvError(f"{path} has more pixels than any image should: make it smaller, or take it away.") from None
    except Pillow.UnidentifiedImageError:
        raise CarvError(f"{path} is no image that can be read: convert it to PNG, or take it away.") from None
    except OSError as error:
        raise explain_os_error(error, path, "read") from error


def _read_metadata(folder: Path) -> dict[str, str]:
    path = folder / "metadata.jsonl"
    if not path.exists():
        return {}
    captions, fix = {}, "mend it or delete it"
    for number, line in enumerate(read_text(path, fix).splitlines(), 1):
        if line.strip():
            entry = parse_json(line, f"line {number} of {path}", fix)
            if "file_name" not in entry:
                raise CarvError(f"line {number} of {path} has no file_name; {fix}")
            captions[str(entry["file_name"])] = str(entry.get("text", ""))
    return captions
