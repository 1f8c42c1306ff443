"""A run's metrics.csv: one line a step, an empty cell where a step has no such figure."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from carv_3d.files import explain_os_error, write_atomic


def append_row(path: Path, columns: Sequence[str], row: dict[str, float]) -> None:
    """Add a row; CarvError where it cannot be written."""
    try:
        with path.open("a", newline="", encoding="utf-8") as handle:
            csv.writer(handle).writerow(_cells(row, columns))
    except OSError as error:
        raise explain_os_error(error, path) from error


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[dict[str, float]]) -> None:
    """The file anew, whole or not at all."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(columns)
    writer.writerows(_cells(row, columns) for row in rows)
    write_atomic(path, buffer.getvalue())


def _cells(row: dict[str, float], columns: Sequence[str]) -> list[str]:
    values = [row.get(name, math.nan) for name in columns]
    return ["" if math.isnan(v) else f"{v:.6g}" for v in values]
