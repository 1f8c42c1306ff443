"""The rows of a metrics.csv that a resumed run keeps, and the file that is not the one it left."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from carv_3d.errors import CarvError
from carv_3d.io.tables import append_row
from carv_3d.runs.kept_figures import kept_rows

COLUMNS = ("step", "seconds", "place")
HEAD = "step,seconds,place"


@pytest.mark.parametrize(
    ("text", "reason", "kept"),
    [
        ("step,loss\n9,1\n", "it has a column 'loss'", []),
        ("step,loss\n3,1\n", "it has a column 'loss'", []),
        ("step,seconds,note\n1,1,7\n2,1,7\n3,1,7\n4,1,7\n", "it has a column 'note'", [1, 2, 3, 4]),
        (f"{HEAD}\n1,1,1\n2,1,1\n", "it lacks some of the steps up to 4", [1, 2]),
        (f"{HEAD}\n9,1,1\n", "it lacks some of the steps up to 4", []),
        (f"{HEAD}\n4,1,1\n3,1,1\n2,1,1\n1,1,1\n", "its steps do not rise", []),
        (f"{HEAD}\n1,1,1\n1,1,1\n2,1,1\n3,1,1\n4,1,1\n", "its steps do not rise", []),
        ("", "it lacks some of the steps up to 4", []),
    ],
)
def test_what_is_not_the_runs_own_is_kept_as_a_copy(tmp_path: Path, text: str, reason: str, kept: list[int]) -> None:
    path, said = tmp_path / "metrics.csv", list[str]()
    path.write_text(text)
    for name in ("metrics.csv.damaged", "metrics.csv.damaged-2"):  # an earlier copy stays
        assert [row["step"] for row in kept_rows(path, COLUMNS, 4, said.append)] == kept
        assert said.pop() == f"{path} is not as the run left it, {reason}; it is kept as {name}"
        assert (tmp_path / name).read_text() == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"8,0.2,0.5,0.5\n9,0.2,0.5,0.5\n", "has two columns of the name '0.5'"),
        (b"step,seconds\n1,\xff\n", "is not text in UTF-8"),
    ],
)
def test_what_is_no_table_is_kept_and_the_run_continues(tmp_path: Path, text: bytes, reason: str) -> None:
    path, said = tmp_path / "metrics.csv", list[str]()
    path.write_bytes(text)
    assert kept_rows(path, COLUMNS, 9, said.append) == []
    assert said == [f"{path} {reason}; it is kept as metrics.csv.damaged"]
    assert (tmp_path / "metrics.csv.damaged").read_bytes() == text
    path.unlink()
    path.mkdir()
    with pytest.raises(CarvError, match="is a folder"):
        kept_rows(path, COLUMNS, 9, said.append)


def test_a_file_that_is_removed_while_the_run_writes_has_its_header_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    for step in (8, 9):
        append_row(path, COLUMNS, {"step": step, "seconds": 0.5})
    assert path.read_text().splitlines() == [HEAD, "8,0.5,", "9,0.5,"]
    append_row(path, COLUMNS, {"step": 10})
    assert [row["step"] for row in kept_rows(path, COLUMNS, 9, [].append)] == [8, 9]


def test_where_that_is_refused_nothing_is_written(tmp_path: Path) -> None:
    def refuse(sentence: str) -> NoReturn:
        raise CarvError(sentence)

    path = tmp_path / "metrics.csv"
    with pytest.raises(CarvError, match="is missing: the figures up to step 4 are lost"):
        kept_rows(path, COLUMNS, 4, refuse)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(CarvError, match="it has a column 'a'"):
        kept_rows(path, COLUMNS, 4, refuse)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


def test_rows_behind_the_checkpoint_and_a_first_row_of_step_0_are_the_runs_own(tmp_path: Path) -> None:
    path, said = tmp_path / "metrics.csv", list[str]()
    assert kept_rows(path, COLUMNS, 0, said.append) == []
    rows = "\n".join(f"{step},1,1" for step in (*range(6), 5))  # killed while it wrote step 6
    path.write_text(f"{HEAD}\n{rows}\n6,0.")
    assert [row["step"] for row in kept_rows(path, COLUMNS, 4, said.append)] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in kept_rows(path, COLUMNS, 0, said.append)] == [0]
    assert said == []
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]
