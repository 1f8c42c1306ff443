"""What matplotlib is given: labels that it can lay out, and figures that are written without a word."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

from PIL import Image

from carv_3d.report.figures import agg_figure, drawable, plain_label, write_figure


def test_a_label_is_cut_and_no_mathematics() -> None:
    assert plain_label("x" * 80) == "x" * 80
    assert plain_label("x" * 81) == "x" * 76 + " ..."
    assert plain_label("_a $b$") == "\u200b_a \\$b\\$"


def test_numbers_that_no_axis_can_have_are_gaps() -> None:
    assert str(drawable([1, -1e150, 1e149, 1e308, math.inf])) == "[1.e+000     nan 1.e+149     nan     nan]"


def test_a_figure_is_written_without_warnings_of_its_letters(tmp_path: Path) -> None:
    figure = agg_figure(2, 1)
    figure.subplots().plot([0, 1], drawable([-1e308, 1e150]), label="\u676f")
    figure.axes[0].legend()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_figure(figure, tmp_path / "a.png", dpi=50)
    assert Image.open(tmp_path / "a.png").size == (100, 50)
