"""The figures that a resumed run finds in its metrics.csv."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from carv_3d.errors import CarvError
from carv_3d.io.files import unused, write_via
from carv_3d.io.tables import read_table, rows_up_to


def kept_rows(
    path: Path, columns: Sequence[str], last_step: int, misfit: Callable[[str], None]
) -> list[dict[str, float]]:
    """The rows up to the checkpoint, for the file that the resumed run will write.

    A run has one row for each step, by rising step. A file that is otherwise is not what it left there: another's, or
    changed by hand. It is kept under another name, and what can be meant of it stays.

    Args:
        path: of the metrics.csv, which may be missing.
        columns: that the run writes.
        last_step: of the checkpoint.
        misfit: is called with a sentence, without its end, before anything is written; it may raise.

    Raises:
        CarvError: the file cannot be read at all, or its copy not be written.
    """
    if not path.exists():
        if last_step:
            misfit(f"{path} is missing: the figures up to step {last_step} are lost")
        return []
    copy = unused(path.with_name(f"{path.name}.damaged"))
    kept = f"it is kept as {copy.name}"
    try:
        rows = read_table(path, kept)[0]
    except CarvError as error:  # no table of the run's; what can be read at all can be kept
        if not path.is_file():
            raise
        _keep(path, copy, str(error), misfit)
        return []
    foreign = sorted({name for row in rows[:1] for name in row} - set(columns))
    rows = rows_up_to(rows, last_step)
    steps = [row["step"] for row in rows]
    rising = all(before < after for before, after in itertools.pairwise(steps))
    whole = rising and [step for step in steps if step > 0] == list(range(1, last_step + 1))
    if whole and not foreign:
        return rows
    reason = (
        f"it has a column {foreign[0][:40]!r}" if foreign else "its steps do not rise" if not rising
        else f"it lacks some of the steps up to {last_step}"
    )  # fmt: skip
    _keep(path, copy, f"{path} is not as the run left it, {reason}; {kept}", misfit)
    return rows if whole or (rising and not foreign) else []


def _keep(path: Path, copy: Path, sentence: str, misfit: Callable[[str], None]) -> None:
    misfit(sentence)
    write_via(copy, lambda temporary: shutil.copyfile(path, temporary))
