"""Tables of figures: written, added to, and read back with what a kill left of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from carv_3d.errors import CarvError
from carv_3d.io.tables import append_row, csv_text, read_metrics, read_table, seconds_in_all, write_rows

NAN = math.nan


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write_rows(path, ["step", "loss"], [{"step": 1, "loss": 0.123456789, "other": 3.0}])
    append_row(path, ["step", "loss"], {"step": 2})
    assert path.read_bytes() == b"step,loss\r\n1,0.123457\r\n2,\r\n"
    rows = read_metrics(path)
    assert rows[0] == {"step": 1.0, "loss": 0.123457}
    assert math.isnan(rows[1]["loss"])
    assert [r["step"] for r in read_metrics(path, last_step=1)] == [1.0]
    assert read_metrics(tmp_path / "none.csv") == []
    with pytest.raises(CarvError, match="cannot write"):
        append_row(tmp_path / "none" / "metrics.csv", ["step"], {"step": 1.0})


def test_the_seconds_of_rows_that_have_them() -> None:
    assert seconds_in_all([{"seconds": 1.5}, {"seconds": NAN}, {"step": 3.0}, {"seconds": math.inf}]) == 1.5
    assert seconds_in_all([]) == 0
    assert seconds_in_all([{"seconds": 1e308}, {"seconds": 1e308}, {"seconds": -5.0}, {"seconds": 2.0}]) == 2


def test_text_of_cells() -> None:
    assert csv_text(["a", "b"], [[1, 1.0], [NAN, None], ["x,y", 1e-9]]) == 'a,b\r\n1,1\r\n,\r\n"x,y",1e-09\r\n'
    large = csv_text(["step"], [[1234567.0], [-2.0], [1.5e300], [math.inf]])
    assert large == "step\r\n1234567\r\n-2\r\n1.5e+300\r\ninf\r\n"


def test_damaged_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,0.5\n2,gar\0bage\n3\n4,0.25\n5,0.2")
    rows, damaged = read_table(path)
    assert rows == [{"step": 1.0, "loss": 0.5}, {"step": 4.0, "loss": 0.25}]
    assert damaged == 3


def test_columns_of_the_first_version_have_their_present_names(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,judge_object,judge_colour,judge_finish,agreement_colour,unet_rows,rows\n1,2,3,4,5,6,7\n")
    assert read_table(path)[0] == [
        {
            "step": 1.0,
            "classifier_object": 2.0,
            "classifier_color": 3.0,
            "classifier_material": 4.0,
            "agreement_color": 5.0,
            "nfe": 6.0,
            "samples": 7.0,
        }
    ]
