"""A run's metrics.csv: one line a step, an empty cell where a step has no such figure."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from carv_3d.io.files import explain_os_error, write_atomic

# Columns of runs that version 0.1.0 wrote, and what they are called now.
RENAMED = {
    "judge_object": "classifier_object",
    "judge_colour": "classifier_color",
    "judge_finish": "classifier_material",
    "agreement_colour": "agreement_color",
    "unet_rows": "nfe",
}


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


def read_metrics(path: Path, last_step: int | None = None) -> list[dict[str, float]]:
    """The rows of a metrics.csv as numbers (an empty cell becomes NaN); a torn last line is left out.

    With `last_step`, only rows whose `step` is at most that.
    """
    rows = read_table(path)[0] if path.exists() else []
    return [row for row in rows if last_step is None or row.get("step", math.inf) <= last_step]


def read_table(path: Path) -> tuple[list[dict[str, float]], int]:
    """The rows of a CSV of numbers (an empty cell becomes NaN), and how many lines a kill left torn or garbled."""
    rows: list[dict[str, float]] = []
    damaged = 0
    with path.open(newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            try:
                rows.append({RENAMED.get(k, k): float(v) if v != "" else math.nan for k, v in row.items()})
            except (TypeError, ValueError):  # a line that a kill cut short has missing or garbled cells
                damaged += 1
    return rows, damaged


def _cells(row: dict[str, float], columns: Sequence[str]) -> list[str]:
    values = [row.get(name, math.nan) for name in columns]
    return ["" if math.isnan(v) else f"{v:.6g}" for v in values]
