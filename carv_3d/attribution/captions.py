"""Captions next to training images: `metadata.csv` and `metadata.jsonl` as Hugging Face's ImageFolder has them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from carv_3d.attribution.image_files import CAPTION_KEYS, MAX_CAPTION, hidden
from carv_3d.errors import CarvError, shown
from carv_3d.io.structured import parse_json, read_text

FIX = "mend it or delete it"
Row = tuple[str, str]  # file name, caption


def read_captions(folder: Path, images: set[str]) -> dict[str, str]:
    """The captions of every metadata.csv and metadata.jsonl in a folder and below.

    Their file names count from their own folder. Where both have an image, metadata.jsonl counts.

    Args:
        folder: of the images.
        images: normal paths of them.

    Returns:
        Normal path -> caption, "" for an empty one.

    Raises:
        CarvError: a row without a file name or a caption, or a file none of whose rows is of an image in the folder.
    """
    captions: dict[str, str] = {}
    for path in sorted(p for p in folder.rglob("metadata.*") if not hidden(p.relative_to(folder))):
        reader = {"metadata.csv": _csv_rows, "metadata.jsonl": _json_rows}.get(path.name)
        if reader is None:
            continue
        rows = list(reader(path))
        here = {normal(path.parent / name): text for name, text in rows}
        if rows and not images & here.keys():
            raise CarvError(
                f"none of the {len(rows)} file names in {path} is an image of {folder} (the first is "
                f"{shown(rows[0][0])}); write them as seen from {path.parent}, or delete the file"
            )
        captions |= here
    return captions


def normal(path: Path) -> str:
    """A path without "." and "..", to compare."""
    return os.path.normpath(path)


def text_next_to(path: Path) -> str:
    """Of an image's text file of the same name, "" without one. Raises CarvError where it cannot be read."""
    text = path.with_suffix(".txt")
    return read_text(text, FIX, MAX_CAPTION).strip() if os.path.lexists(text) else ""


def _json_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_text(path, FIX).split("\n"), 1):  # a caption may hold U+2028
        if line.strip():
            name = f"line {number} of {path}"
            yield _row(parse_json(line, name, FIX), name)


def _csv_rows(path: Path) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(read_text(path, FIX), newline=""))
    try:
        header = next(reader, [])
        places = {name: header.index(name) for name in ("file_name", *CAPTION_KEYS) if name in header}
        # a file of many columns must not make as many entries for each of its rows
        names = list(places) + [f"{len(header):,} columns"] * (len(header) > len(places))
        for cells in reader:
            line = f"line {reader.line_num} of {path}"
            if cells and len(cells) != len(header):
                raise CarvError(f"{line} has {len(cells)} cells, and the first line {len(header)}; {FIX}")
            if cells:
                yield _row({name: cells[place] for name, place in places.items()}, line, names)
    except csv.Error as error:
        raise CarvError(f"{path} is not readable CSV (line {reader.line_num}: {error}); {FIX}") from error


def _row(row: dict[str, Any], name: str, columns: list[str] | None = None) -> Row:
    file = row.get("file_name")
    if not isinstance(file, str):
        raise CarvError(f"{name} has no file_name; {FIX}")
    column = next((column for column in CAPTION_KEYS if column in row), None)
    if column is None:
        there = ", ".join(row if columns is None else columns)
        raise CarvError(f"{name} has {there[:80]} and no {' or '.join(CAPTION_KEYS)}; {FIX}")
    text = row[column]
    if not isinstance(text, str | None):
        raise CarvError(f"{name} has {column} {shown(text)}; it must be text; {FIX}")
    return file, text or ""
