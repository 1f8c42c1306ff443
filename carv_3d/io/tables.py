"""CSV tables; a run's metrics.csv has one line a step, and an empty cell where a step has no such figure."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from carv_3d.io.files import explain_os_error, write_atomic
from carv_3d.io.structured import RESTORE, read_csv

# Columns of runs that version 0.1.0 wrote, and what they are called now.
RENAMED = {
    "judge_object": "classifier_object",
    "judge_colour": "classifier_color",
    "judge_finish": "classifier_material",
    "agreement_colour": "agreement_color",
    "unet_rows": "nfe",
    "rows": "samples",
}
MOST_SECONDS = 1e9  # of one step


def append_row(path: Path, columns: Sequence[str], row: Mapping[str, float]) -> None:
    """Add a row, and the header where the file was removed; CarvError where it cannot be written."""
    try:
        with path.open("a", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            if not handle.tell():
                writer.writerow(columns)
            writer.writerow(map(_cell, _values(row, columns)))
    except OSError as error:
        raise explain_os_error(error, path) from error


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, float]]) -> None:
    """The file anew, whole or not at all."""
    write_atomic(path, csv_text(columns, (_values(row, columns) for row in rows)))


def csv_text(header: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A CSV; floats with six digits and whole ones with all of theirs, NaN and None as empty cells."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(header)
    writer.writerows(map(_cell, row) for row in rows)
    return buffer.getvalue()


def _values(row: Mapping[str, float], columns: Sequence[str]) -> list[float]:
    return [float(row.get(name, math.nan)) for name in columns]


def _cell(value: object) -> object:
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) < 2**53  # steps beyond a million must stay apart
        return "" if math.isnan(value) else f"{value:.0f}" if whole else f"{value:.6g}"
    return "" if value is None else value


def read_metrics(path: Path, last_step: int | None = None) -> list[dict[str, float]]:
    """The whole rows of a metrics.csv as numbers, [] where there is no file.

    With `last_step`, only rows whose `step` is at most that.
    """
    rows = read_table(path)[0] if path.exists() else []
    return rows if last_step is None else rows_up_to(rows, last_step)


def rows_up_to(rows: Iterable[dict[str, float]], last_step: int) -> list[dict[str, float]]:
    """Those whose `step` is at most that."""
    return [row for row in rows if row.get("step", math.inf) <= last_step]


def seconds_in_all(rows: Iterable[Mapping[str, float]]) -> float:
    """The seconds of all rows; a row whose cell is empty, damaged (below 0, above 30 years) or missing counts as 0."""
    each = (row.get("seconds", math.nan) for row in rows)
    return sum(seconds for seconds in each if 0 <= seconds <= MOST_SECONDS)


def read_table(path: Path, fix: str = RESTORE) -> tuple[list[dict[str, float]], int]:
    """The rows of a CSV of numbers (an empty cell becomes NaN), and how many lines a kill left torn or garbled.

    Raises:
        CarvError: ending in `fix`, where the file cannot be read or is no CSV.
    """
    lines, damaged = read_csv(path, fix, quoted=False)
    rows: list[dict[str, float]] = []
    for line in lines:
        try:
            rows.append({RENAMED.get(k, k): float(v) if v != "" else math.nan for k, v in line.items()})
        except ValueError:
            damaged += 1
    return rows, damaged
