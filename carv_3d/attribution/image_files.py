"""Where training images lie: files in a folder and below, and members of webdataset's tars, each under a name for good.

A tar is never unpacked. Its index is read once, and a member's bytes are read from where they stand, so that no name in
it becomes a path. Links, devices and sparse members are left out, as are names that lead outside.
"""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from carv_3d.errors import CarvError, first_line
from carv_3d.io.files import explain_os_error, open_file, shown_path
from carv_3d.io.images import MAX_BYTES, REPLACE
from carv_3d.io.structured import parse_json

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
OTHER_IMAGES = (".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".ppm", ".pgm", ".ico", ".tga")
PACKED = re.compile(r"\.(tar\.(gz|bz2|xz|zst)|tgz|tbz2?|txz|zip|7z|rar)$", re.IGNORECASE)
CAPTION_KEYS = ("text", "caption")  # of metadata and of a sample's .json
RANGE = re.compile(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}")  # of shards, as webdataset writes them
MAX_TARS = 10_000  # of a pattern
MAX_CAPTION = 2**20  # bytes of a text that goes with one image
MAX_HEADER = 2**20  # bytes of a tar's header, with its extensions
UNREAD = "is no PNG, JPEG, WebP or BMP; convert it"
OUTSIDE = "has a name that leads outside of its tar"


@dataclass(frozen=True)
class ImageFile:
    """A file, or the part of a tar that is one.

    key: its name for good. offset, size: of a member of a tar, else None.
    """

    key: str
    path: Path
    offset: int | None = None
    size: int = 0

    @property
    def name(self) -> str:
        """For messages."""
        return str(self.path) if self.offset is None else self.key

    def read(self) -> bytes:
        """Its bytes, `MAX_BYTES` at most. Raises CarvError for no regular file, a larger one, or one cut off."""
        with open_file(self.path, REPLACE, MAX_BYTES if self.offset is None else None) as handle:
            try:
                if self.offset is None:
                    return handle.read(MAX_BYTES)
                handle.seek(self.offset)
                data = handle.read(self.size)
            except OSError as error:
                raise explain_os_error(error, self.path, "read") from error
        if len(data) < self.size:
            raise CarvError(f"{self.key} is cut off; {REPLACE}")
        return data


@dataclass
class ImageList:
    """What a place holds.

    files: the images, by name. captions: key -> the text that stands in the same tar. left_out: (name, why).
    """

    root: Path
    files: list[ImageFile] = field(default_factory=list)
    captions: dict[str, str] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def _named(pattern: str) -> list[Path]:
    """What is there of a pattern, by name. Raises CarvError for a range that is too long or there in part."""
    names = [pattern]
    while any(map(RANGE.search, names)):
        names = [name for each in names for name in _range(each, pattern)]
        if len(names) > MAX_TARS:
            raise CarvError(f"{pattern} names more than {MAX_TARS:,} tars; name fewer with --training-images.")
    matches = {name: glob.glob(name) for name in names}
    absent = [name for name, there in matches.items() if not there]
    if absent and len(absent) < len(names):
        raise CarvError(f"there is no {absent[0]}, which {pattern} names; name those that are there.")
    return sorted({Path(path) for there in matches.values() for path in there})


def _range(name: str, pattern: str) -> list[str]:
    """A name with its first {A..B} replaced by each number; as it is without one. Digits as many as A has."""
    match = RANGE.search(name)
    if match is None:
        return [name]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < MAX_TARS:
        raise CarvError(f"{pattern} has the range {match[0]}; it must rise, and hold at most {MAX_TARS:,} numbers.")
    return [f"{name[: match.start()]}{n:0{len(match[1])}}{name[match.end() :]}" for n in range(first, last + 1)]


def find_tars(place: Path) -> list[Path] | None:
    """The tars that a place of training images names; None where it is a folder.

    Raises:
        CarvError: there is nothing at the place, or something else.
    """
    fix = "name a folder of images, or tars (FILE.tar, 'DIR/*.tar', 'DIR/{000..009}.tar'), with --training-images."
    if place.is_dir():
        return None
    tars = [place] if os.path.lexists(place) else _named(str(place))
    other = next((path for path in tars if path.suffix.lower() != ".tar"), None)
    if other is not None:
        raise CarvError(f"{other} is neither a folder of training images nor a .tar; {fix}")
    if not tars and re.match(r"[a-z][a-z0-9]+:", str(place)):
        raise CarvError(f"{place} is an address or a command, and training images are read from files; {fix}")
    if not tars:
        raise CarvError(f"there are no training images at {place}; {fix}")
    return tars


def list_images(place: Path) -> ImageList:
    """The images of a folder and below, of a tar, or of all tars that a pattern names.

    A pattern is such as `data/*.tar` or, as webdataset writes it, `data/{000..009}.tar`.

    Names that begin with a dot are another program's copies (`._a.png`, `.ipynb_checkpoints`) and are not looked at.

    Raises:
        CarvError: there is nothing at the place, or something else.
    """
    tars = find_tars(place)
    if tars is None:
        listed = ImageList(place)
        paths = _files_below(place, listed)
    else:
        listed = ImageList(Path(os.path.commonpath([path.parent for path in tars])))
        paths = tars
    for path in paths:
        name = shown_path(path.relative_to(listed.root).as_posix())
        suffix = path.suffix.lower()
        if suffix in SUFFIXES:
            listed.files.append(ImageFile(name, path))
        elif suffix in OTHER_IMAGES:
            listed.left_out.append((name, UNREAD))
        elif PACKED.search(path.name):
            listed.left_out.append((name, "is compressed, and images are read from plain tars alone; unpack it"))
        elif suffix == ".tar":
            _add_tar(path, name, listed)
    return listed


def hidden(path: PurePosixPath | Path) -> bool:
    """Whether a name on the way begins with a dot."""
    return any(part.startswith(".") and part not in (".", "..") for part in path.parts)


def _files_below(folder: Path, listed: ImageList) -> list[Path]:
    """Sorted; a folder that cannot be read is left out. Links to folders are not followed: they may form a circle."""

    def refused(error: OSError) -> None:
        name = Path(os.fsdecode(error.filename or folder))
        listed.left_out.append((shown_path(os.path.relpath(name, folder)), f"cannot be read: {error.strerror}"))

    paths = []
    for here, folders, names in os.walk(folder, onerror=refused):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(here) / name for name in names if not name.startswith(".")]
    return sorted(paths)


def _add_tar(path: Path, name: str, listed: ImageList) -> None:
    try:
        with open_file(path, REPLACE) as handle:
            samples = _Samples(name, path, os.fstat(handle.fileno()).st_size)
            try:
                for member in _members(handle):
                    samples.add(member, handle)
            except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
                samples.left_out[name] = f"is no whole tar ({first_line(error, 80)}); what stands before is read"
    except CarvError as error:
        listed.left_out.append((name, str(error).removeprefix(f"{path} ")))
        return
    samples.finish(listed)


def _members(handle: BinaryIO) -> Iterator[tarfile.TarInfo]:
    file: Any = _Bounded(handle)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        kept: Any = archive
        while (member := archive.next()) is not None:
            if member.size < 0:  # -512 would lead to the same member for ever
                raise tarfile.ReadError(f"{shown_path(member.name)} has {member.size} bytes")
            yield member
            kept.members = []  # else it keeps all of them
        handle.seek(kept.offset)
        if any(handle.read(tarfile.BLOCKSIZE)):  # tarfile takes a damaged header for the end
            raise tarfile.ReadError(f"no header at byte {kept.offset:,}")


class _Bounded:
    """A file of which nobody reads more than a header at once, whatever size the header claims."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {count} bytes")
        return self._handle.read(count)


class _Samples:
    """The samples of one tar: files that share their name up to the first dot, as webdataset has it."""

    def __init__(self, name: str, path: Path, end: int) -> None:
        self.name, self.path, self.end = name, path, end
        self.images: dict[str, ImageFile] = {}
        self.texts: dict[str, dict[str, str]] = {}  # sample, or name without its last ending -> ending -> text
        self.unreadable: dict[str, str] = {}  # sample -> why its caption cannot be read
        self.left_out: dict[str, str] = {}

    def add(self, member: tarfile.TarInfo, handle: BinaryIO) -> None:
        inner = PurePosixPath(member.name)
        if member.isdir() or hidden(inner):
            return
        key = shown_path(f"{self.name}/{inner}")
        why = self._refusal(member, inner)
        if inner.suffix.lower() in SUFFIXES:
            if why or key in self.images:
                self.left_out[key] = why or "is in the tar twice, and the last one counts"
            if not why:
                self.images[key] = ImageFile(key, self.path, member.offset_data, member.size)
        elif inner.suffix.lower() in (".txt", ".json"):
            why = why or ("has a caption of more than 1 MiB" if member.size > MAX_CAPTION else "")
            self._read_text(key, inner.suffix, why, member, handle)
        elif inner.suffix.lower() in OTHER_IMAGES:
            self.left_out[key] = UNREAD
        elif inner.suffix.lower() == ".tar" or PACKED.search(inner.name):
            self.left_out[key] = "is an archive in a tar; unpack it"

    def _refusal(self, member: tarfile.TarInfo, inner: PurePosixPath) -> str:
        if inner.is_absolute() or ".." in inner.parts:
            return OUTSIDE
        if not member.isreg() or member.issparse():
            return "is a link, a device or a sparse file in its tar"
        if member.size > MAX_BYTES:
            return f"is larger than {MAX_BYTES / 2**20:g} MiB, the most that is read of an image"
        return "" if 0 <= member.offset_data <= self.end - member.size else "is cut off"

    def _read_text(self, key: str, ending: str, why: str, member: tarfile.TarInfo, handle: BinaryIO) -> None:
        stem, ending = key.removesuffix(ending), ending.lower()
        try:
            if why:
                raise CarvError(why)
            here = handle.seek(0, os.SEEK_CUR)
            handle.seek(member.offset_data)
            data = handle.read(member.size)
            handle.seek(here)
            text = _caption(data, ending)
        except CarvError as error:
            self.unreadable[stem] = str(error)
            return
        if text is not None:
            self.texts.setdefault(stem, {})[ending] = text

    def finish(self, listed: ImageList) -> None:
        for key, image in sorted(self.images.items()):
            exact, _, last = key.rpartition("/")[2].rpartition(".")
            folder = key[: len(key) - len(exact) - len(last) - 1]
            stems = [folder + exact, folder + exact.partition(".")[0]]
            texts: dict[str, str] = next((self.texts[stem] for stem in stems if stem in self.texts), {})
            why = next((self.unreadable[stem] for stem in stems if stem in self.unreadable), None)
            if why is not None and ".txt" not in texts:
                self.left_out[key] = f"has a caption that cannot be read: {why}"
                continue
            text = texts.get(".txt", texts.get(".json"))
            if text is not None:
                listed.captions[key] = text
            listed.files.append(image)
        listed.left_out += self.left_out.items()


def _caption(data: bytes, ending: str) -> str | None:
    """None where a .json has none."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CarvError("it is not text in UTF-8") from None
    if ending == ".txt":
        return text.strip()
    values: dict[str, Any] = parse_json(text, "its .json", "mend it")
    value = next((values[key] for key in CAPTION_KEYS if key in values), None)
    if not isinstance(value, str | None):
        raise CarvError("the caption in its .json is no text")
    return value
