"""Figures drawn by matplotlib, without a window and whatever backend the user has chosen."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from carv_3d.io.files import write_via

LARGEST = 1e150
MOST_LETTERS = 80  # of a label; matplotlib lays out thousands for minutes


def agg_figure(width: float, height: float, **options: Any) -> Any:
    """A matplotlib figure of that size in inches, to be drawn by Agg."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), **options)
    FigureCanvasAgg(figure)
    return figure


def plain_label(text: str) -> str:
    """`text` for matplotlib, which would read dollar signs as mathematics and hide labels that begin with _; cut."""
    text = text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 4]} ..."
    return ("\u200b" + text if text.startswith("_") else text).replace("$", r"\$")


def drawable(values: Any) -> Any:
    """The numbers with NaN, which leaves a gap, for those too large for the arithmetic of matplotlib's axes."""
    array = np.asarray(values, float)
    return np.where(np.abs(array) < LARGEST, array, np.nan)


def write_figure(figure: Any, path: Path, dpi: int) -> None:
    """Write it as a PNG, whole or not at all; CarvError where that fails.

    matplotlib's warnings, such as of letters that its font lacks, stay unsaid.
    """

    def write(temporary: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figure.savefig(temporary, dpi=dpi, format="png")

    write_via(path, write)
