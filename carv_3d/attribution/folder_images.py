"""Training images of one's own: a folder, or webdataset's tars, of which some may be damaged."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from carv_3d.attribution.captions import normal, read_captions, text_next_to
from carv_3d.attribution.data_report import DataReport
from carv_3d.attribution.image_files import SUFFIXES, ImageFile, ImageList, list_images
from carv_3d.attribution.images import Image, WrongSizeError, model_image
from carv_3d.errors import CarvError
from carv_3d.io.files import write_via
from carv_3d.io.tensor_files import mapped_array

DIGEST = hashlib.sha256().digest_size


class _Checked(NamedTuple):
    """Of a file that can be read: digests of its bytes and of the pixels, and whether it is transparent in part."""

    file: bytes
    pixels: bytes
    transparent: bool


class FolderImages:
    """The images in a folder and below or in tars, by name, each read whole once before it counts.

    Captions come from metadata.csv or metadata.jsonl (file_name, and text or caption), in the folder or below, from a
    text file next to each image, or from the same sample of a tar; "" without one. An image that cannot be read, or
    whose own caption cannot be, is left out.

    Attributes:
        report: what was left out, and which images are the same.
    """

    def __init__(
        self,
        place: Path,
        size: int,
        resize: bool = False,
        limit: int | None = None,
        known: Path | None = None,
        listed: ImageList | None = None,
        show: Callable[[int], object] = lambda done: None,
    ) -> None:
        """Reads every image once, unless `known` says that it was.

        Args:
            place: as of `list_images`.
            size: the model's.
            resize: cut the middle square of others and scale it.
            limit: the first so many alone.
            known: a file that keeps which images were read before; it is made and brought up to date.
            listed: what `list_images(place)` gives, where it is at hand.
            show: called as show(done) after each image.

        Raises:
            CarvError: a folder that is missing or holds no image that can be read, or an image of another size.
        """
        listed = listed or list_images(place)
        self.name, self._size, self._resize = str(place), size, resize
        self.report = DataReport(left_out=listed.left_out)
        self._files: list[ImageFile] = []
        self._captions: list[str] = []
        self._digests: list[bytes] = []
        captions = read_captions(place, {normal(file.path) for file in listed.files}) if place.is_dir() else {}
        pixels: dict[bytes, str] = {}
        with _known_images(known, f"{size} {resize}") as checked:
            for number, file in enumerate(listed.files, 1):
                if len(self._files) == limit:
                    break
                try:
                    caption = _caption(file, listed.captions, captions)
                    each = self._check(file, checked)
                except WrongSizeError:
                    raise
                except CarvError as error:
                    self.report.left_out.append((file.key, str(error).removeprefix(f"{file.name} ")))
                    continue
                self._files.append(file)
                self._captions.append(caption)
                self._digests.append(each.file)
                self.report.on_white += each.transparent
                first = pixels.setdefault(each.pixels, file.key)
                if first != file.key:
                    self.report.duplicates.append((file.key, first))
                show(number)
        if not self._files:
            raise CarvError(_nothing(place, self.report.left_out))

    def _check(self, file: ImageFile, checked: dict[bytes, _Checked]) -> _Checked:
        data = file.read()
        digest = hashlib.sha256(data).digest()
        if digest not in checked:
            image, transparent = model_image(data, file.name, self._size, self._resize)
            checked[digest] = _Checked(digest, hashlib.sha256(image.tobytes()).digest(), transparent)
        return checked[digest]

    def __len__(self) -> int:
        return len(self._files)

    def key(self, index: int) -> str:
        """The path below the folder; of a tar's member, its name below the tar's."""
        return self._files[index].key

    def image(self, index: int) -> Image:
        """(S, S, 3), of the size that was asked for. Raises CarvError where it has changed and cannot be read."""
        file = self._files[index]
        return model_image(file.read(), file.name, self._size, self._resize)[0]

    def caption(self, index: int) -> str:
        """Of the image; empty where there is none."""
        return self._captions[index]

    def labels(self, index: int) -> dict[str, str]:
        """Nothing is known."""
        return {}

    def digest(self, index: int) -> str:
        """Of the file's bytes, and how it is brought to the model's size."""
        return f"{self._size} {self._resize} {self._digests[index].hex()}"

    def fingerprint(self) -> str:
        """Of every image's bytes and caption."""
        digest = hashlib.sha256(f"{self._size} {self._resize}".encode())
        for index, own in enumerate(self._digests):
            digest.update(own)
            digest.update(f"{self.key(index)}\0{self.caption(index)}\0".encode())
        return digest.hexdigest()[:16]


def _caption(file: ImageFile, tars: dict[str, str], tables: dict[str, str]) -> str:
    if file.offset is not None:
        return tars.get(file.key, "")
    listed = tables.get(normal(file.path))
    return text_next_to(file.path) if listed is None else listed


def _nothing(place: Path, left_out: list[tuple[str, str]]) -> str:
    if not left_out:
        return f"{place} holds no images ({', '.join(SUFFIXES)}, or .tar); name another folder."
    name, why = left_out[0]
    return (
        f"no image of {place} can be read, of {len(left_out):,} that there are; name another folder (the first is "
        f"{name}, which {why.rstrip('.')})."
    )


@contextlib.contextmanager
def _known_images(path: Path | None, how: str) -> Iterator[dict[bytes, _Checked]]:
    """What is known of images by the digest of their bytes; what the block adds is written, also where it is stopped.

    how: they are brought to the model's size; a file of another `how` counts for nothing.
    """
    own = np.frombuffer(hashlib.sha256(how.encode()).digest() + bytes(DIGEST + 1), np.uint8)
    checked: dict[bytes, _Checked] = {}
    if path is not None:
        with contextlib.suppress(CarvError):  # not there, or damaged
            table = mapped_array(path, "r", "")
            if table.dtype == np.uint8 and table.shape[1:] == own.shape and len(table) and (table[0] == own).all():
                for row in table[1:]:
                    data = row.tobytes()
                    each = _Checked(data[:DIGEST], data[DIGEST:-1], bool(data[-1]))
                    checked[each.file] = each
    before = len(checked)
    try:
        yield checked
    finally:
        if path is not None and len(checked) > before:
            rows = [np.frombuffer(c.file + c.pixels + bytes([c.transparent]), np.uint8) for c in checked.values()]
            write_via(path, lambda temporary: np.save(temporary, np.stack([own, *rows])))
