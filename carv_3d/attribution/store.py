"""Rows of numbers on the disk, one for each item: memory-mapped, resumable row by row, shared by processes.

A folder holds `meta.json` (what the rows are made with), `rows.npy` and `done.npy`, a checksum for each row that is
finished; where rows have keys also `keys.json`, by which a store of other items takes rows over. A row that a kill or a
power cut left torn does not match its checksum and is made again. Processes write disjoint rows of the same file, so
shards need no merging and give what one process gives. Stores that machines without a common disk have made are
merged.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carv_3d.core.arguments import described, fits
from carv_3d.errors import CarvError, first_line, shown
from carv_3d.io.files import explain_os_error, make_folder, write_atomic, write_via
from carv_3d.io.structured import differing_keys, look_up, read_json
from carv_3d.io.tensor_files import mapped_array

FORMAT = 1
UNIT = 16  # neighbours that a share has together, where there are many times as many
UNITS = 8  # in a share, from where on it has whole ones
PER_ITEM = ("items", "rows")  # what of the metadata says which items there are
RELEASE_EVERY = 512  # rows that are looked at


class RowStore:
    """`count` rows of float32 of one shape, in a folder of their own."""

    def __init__(
        self,
        folder: Path,
        meta: Mapping[str, Any],
        count: int,
        shape: tuple[int, ...],
        keys: Sequence[str] = (),
        earlier: Iterable[Path] = (),
    ) -> None:
        """Opens the store, or makes an empty one; finished rows are kept.

        meta: plain data (as JSON gives it back) that says what a row depends on.
        keys: one a row, equal where what the row depends on besides `meta` without its "items" is equal.
        earlier: stores of other items, from which a new one takes the finished rows that have the same keys.
        Raises CarvError for a store made with anything else, naming what differs, for one that is damaged, and where
        the disk refuses; nothing is written over.
        """
        _check_made(meta, count, shape, keys)
        self.folder, self.count, self.shape = Path(folder), int(count), tuple(shape)
        self.taken_over = 0
        self._reads = 0
        self._meta = expected = as_stored({"format": FORMAT, "rows": [self.count, *shape], **meta})
        make_folder(folder)
        with waiting_for(folder):
            if not (folder / "meta.json").exists():
                self._create(expected, list(keys), earlier)
            self._check(expected)
        fix = f"delete {folder}, and it is made again"
        self._rows, self._done = (mapped_array(folder / f"{name}.npy", "r+", fix) for name in ("rows", "done"))
        if self._rows.shape != (count, *shape) or self._done.shape != (count,):
            raise CarvError(f"the store in {folder} is damaged: its arrays have other shapes; {fix}")
        self._verify()

    @property
    def rows(self) -> NDArray[np.float32]:
        """(count, *shape), memory-mapped; rows that are not finished are zero."""
        return self._rows

    @property
    def finished(self) -> NDArray[np.bool_]:
        """(count,) which rows are there."""
        return np.asarray(self._done) != 0

    @property
    def complete(self) -> bool:
        """Whether every row is there."""
        return bool(self.finished.all())

    def checksum(self) -> int:
        """Of all rows, by their own checksums."""
        return zlib.crc32(np.asarray(self._done).tobytes())

    def share(self, shard: int, shards: int) -> NDArray[np.int64]:
        """The rows of a share, whether they are made or not.

        Units of neighbours in turn where there are many, so that the chunks that are encoded together are a share's
        own; else single rows in turn.
        """
        if not 0 <= shard < shards:
            raise CarvError(f"shard {shard} of {shards} does not exist; shards count from 0.")
        unit = UNIT if self.count >= UNIT * UNITS * shards else 1
        index = np.arange(self.count)
        return index[index // unit % shards == shard]

    def pending(self, shard: int = 0, shards: int = 1) -> NDArray[np.int64]:
        """The rows that this shard has still to make."""
        share = self.share(shard, shards)
        return share[~self.finished[share]]

    def missing(self, rows: range) -> list[int]:
        """Those of some neighbours that are not there, as other processes have it now."""
        return [i for i in rows if not self._done[i]]

    def merge(self, folder: Path) -> int:
        """Takes over the finished rows of a store of the same that was made elsewhere; returns how many were new.

        Raises:
            CarvError: it was made with anything else or has other keys, or is damaged; nothing is taken over then.
        """
        fix = "name a store of the same model, images and options with --merge"
        stored = read_json(folder / "meta.json", fix)
        for key in differing_keys(stored, self._meta):
            raise CarvError(
                f"the store in {folder} was made with {key} = {look_up(stored, key)!r}, and this one with "
                f"{look_up(self._meta, key)!r}; {fix}"
            )
        keys, others = (
            read_json(place / "keys.json", fix, list) if (place / "keys.json").exists() else []
            for place in (self.folder, folder)
        )
        if keys != others:
            differing = next((i for i, pair in enumerate(zip(keys, others)) if pair[0] != pair[1]), len(keys))
            raise CarvError(f"the store in {folder} has another key for item {differing}; {fix}")
        rows, done = (mapped_array(folder / f"{name}.npy", "r", fix) for name in ("rows", "done"))
        if rows.shape != self._rows.shape or done.shape != self._done.shape:
            raise CarvError(f"the store in {folder} is damaged: its arrays have other shapes; {fix}")
        taken = 0
        for index in np.flatnonzero((np.asarray(done) != 0) & ~self.finished):
            row = np.array(rows[index], dtype=np.float32)
            if _checksum(row) == done[index]:
                self.write(int(index), row)
                taken += 1
                if taken % RELEASE_EVERY == 0:
                    self.flush()
                    release_pages(rows)
        self.flush()
        return taken

    def read(self, index: int) -> NDArray[np.float32]:
        """A copy of one row; going over all of them takes the memory of a few."""
        row = np.array(self._rows[self._place(index)])
        self._reads += 1
        if self._reads % RELEASE_EVERY == 0:
            release_pages(self._rows)
        return row

    def write(self, index: int, row: NDArray[np.float32]) -> None:
        """Puts a row in its place, then its checksum. CarvError unless it is of finite numbers, for a row that is."""
        index = self._place(index)
        if getattr(row, "shape", None) != self.shape:
            given = f"of shape {tuple(row.shape)}" if hasattr(row, "shape") else f"that is {described(row)}"
            raise CarvError(f"a row {given} came to a store of rows {self.shape}.")
        if np.asarray(row).dtype.kind not in "fiu":
            raise CarvError(f"row {index} is of type {row.dtype}; it must be of real numbers.")
        with np.errstate(over="ignore"):
            row = np.ascontiguousarray(row, dtype=np.float32)
        if not np.isfinite(row).all():
            raise CarvError(f"row {index} holds NaN, infinity or more than float32 can; it is not stored.")
        self._rows[index] = row
        self._done[index] = _checksum(row)

    def _place(self, index: int) -> int:
        """The index of a row; CarvError for anything else, as numpy would take a mask, None or a negative one."""
        if not fits(index, int) or not 0 <= index < self.count:
            raise CarvError(f"row {shown(index)} is none of this store; its rows are 0 to {self.count - 1}.")
        return int(index)

    def flush(self) -> None:
        """Hands everything to the disk, rows before checksums; the process keeps none of it in memory."""
        try:
            self._rows.flush()
            self._done.flush()
        except OSError as error:
            raise explain_os_error(error, self.folder) from error
        release_pages(self._rows)

    def _create(self, meta: dict[str, Any], keys: list[str], earlier: Iterable[Path]) -> None:
        need = 4 * self.count * int(np.prod(self.shape))
        free = _free_bytes(self.folder)
        if free is not None and need > free:
            raise CarvError(
                f"{self.folder} needs {need / 2**30:.1f} GiB and the disk has {free / 2**30:.1f} GiB left: "
                "free some space, take fewer items or a smaller projection."
            )
        for name, shape, dtype in (
            ("rows.npy", (self.count, *self.shape), np.float32),
            ("done.npy", (self.count,), np.uint32),
        ):
            write_via(self.folder / name, lambda path, s=shape, d=dtype: _empty(path, s, d))  # type: ignore[misc]
        if keys:
            write_atomic(self.folder / "keys.json", json.dumps(keys))
            self._copy_rows(meta, keys, earlier)
        write_atomic(self.folder / "meta.json", json.dumps(meta, indent=2))  # last: it says that the rest is whole

    def _copy_rows(self, meta: dict[str, Any], keys: list[str], earlier: Iterable[Path]) -> None:
        rows, done = (np.load(self.folder / f"{name}.npy", mmap_mode="r+") for name in ("rows", "done"))
        for folder in earlier:
            try:
                stored = read_json(folder / "meta.json")
                there = {key: i for i, key in enumerate(read_json(folder / "keys.json", kind=list))}
                old_rows, old_done = (mapped_array(folder / f"{name}.npy", "r", "") for name in ("rows", "done"))
            except (CarvError, TypeError):  # damaged, or of a version without keys
                continue
            if _without_items(stored) != _without_items(meta) or old_rows.shape != (len(there), *self.shape):
                continue
            for index, key in enumerate(keys):
                old = there.get(key)
                if old is not None and not done[index] and old_done[old] == _checksum(old_rows[old]):
                    rows[index], done[index] = old_rows[old], old_done[old]
                    self.taken_over += 1
        rows.flush()
        done.flush()

    def _check(self, expected: dict[str, Any]) -> None:
        path = self.folder / "meta.json"
        stored = read_json(path, f"delete {self.folder}, and it is made again")
        differing = differing_keys(stored, expected)
        for key in (key for key in differing if key not in PER_ITEM):
            raise CarvError(
                f"the store in {self.folder} was made with {key} = {look_up(stored, key)!r}, and now it is "
                f"{look_up(expected, key)!r}: set it back, or name another folder."
            )
        if differing:
            raise CarvError(
                f"the store in {self.folder} is of other training images or captions: put those back, name another "
                "folder, or leave --store out: the cache keeps the rows of images that stay."
            )

    def _verify(self) -> None:
        """Takes back the checksum of rows that do not match it."""
        for n, index in enumerate(np.flatnonzero(self.finished)):
            if self._done[index] != _checksum(self._rows[index]):
                self._done[index] = 0
            if n % RELEASE_EVERY == 0:
                release_pages(self._rows)
        release_pages(self._rows)


def _check_made(meta: Any, count: Any, shape: Any, keys: Any) -> None:
    """CarvError unless a store can be made of these."""
    sides: list[Any] = list(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else [None]
    if not fits(count, int) or count < 0 or not all(fits(side, int) and side > 0 for side in sides):
        raise CarvError(f"count is {shown(count)} and shape {shown(shape)}; they must be whole numbers, sides above 0.")
    if not isinstance(meta, Mapping):
        raise CarvError(f"meta is {described(meta)}; it must be a dict of what the rows depend on.")
    if len(keys) not in (0, count) or not fits(list(keys), Sequence[str]):
        raise CarvError(f"keys are {len(keys)} for {count} rows; they must be one text for each row, or none.")


def as_stored(meta: dict[str, Any]) -> dict[str, Any]:
    """The metadata as a file gives it back. CarvError for what JSON does not have."""
    try:
        read: dict[str, Any] = json.loads(json.dumps(meta, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CarvError(f"meta must be plain data, its numbers finite ({first_line(error)}).") from error
    return read


def _without_items(meta: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in meta.items() if key not in PER_ITEM}


def release_pages(rows: NDArray[np.float32]) -> None:
    """Give back the memory of pages that were touched, where the platform can.

    The file has them; without this a process would seem to grow with its store.
    """
    pages: Any = getattr(rows, "_mmap", None)
    if hasattr(pages, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)


def _checksum(row: NDArray[np.float32]) -> int:
    return zlib.crc32(row.tobytes()) or 1


def _empty(path: Path, shape: tuple[int, ...], dtype: Any) -> None:
    np.lib.format.open_memmap(path, "w+", dtype, shape).flush()


def _free_bytes(folder: Path) -> int | None:
    import shutil

    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


@contextlib.contextmanager
def waiting_for(folder: Path) -> Iterator[None]:
    """Waits for other processes that are making the same in `folder`; no lock where the platform has none."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks goes without
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
