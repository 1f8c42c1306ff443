"""What the training images turned out to be: which were left out and why, laid on white, or there more than once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from carv_3d.io.files import write_atomic
from carv_3d.io.tables import csv_text

SHOWN_REASON = 100  # characters of the first reason on the terminal


@dataclass
class DataReport:
    """Of a set of training images.

    left_out: (name, why) of each file that is no item. duplicates: (name, name of the first one with the same pixels,
    as the model is given them). on_white: how many are transparent in part.
    """

    left_out: list[tuple[str, str]] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    on_white: int = 0

    def say(self, count: int, say: Callable[[str], object]) -> None:
        """At most one line of each kind. count: images that are items."""
        if self.left_out:
            name, why = self.left_out[0]
            why = why if len(why) <= SHOWN_REASON else f"{why[:SHOWN_REASON]} ..."
            number = f"{len(self.left_out):,} of {count + len(self.left_out):,} files"
            say(f"{number} left out (left_out.csv lists them). The first, {name}, {why}")
        if self.on_white:
            say(f"Training images that are transparent in part, on white from here on: {self.on_white:,}.")
        if self.duplicates:
            name, first = self.duplicates[0]
            number = f"Training images with the pixels of an earlier one: {len(self.duplicates):,}"
            say(f"{number} (duplicates.csv lists them), the first is {name}, with those of {first}.")

    def html(self) -> str:
        """A section for the page, "" where all is as it should be."""
        return "".join(
            f'<details class="card"><summary>{title}: {len(rows):,}</summary><table class="ranks">'
            f"<tr><th>{escape(head[0])}</th><th>{escape(head[1])}</th></tr>"
            + "".join(f"<tr><td>{escape(a)}</td><td>{escape(b)}</td></tr>" for a, b in rows)
            + "</table></details>"
            for title, head, rows in (
                ("Files that were left out", ("file", "which"), self.left_out),
                ("Images with the pixels of an earlier one", ("image", "the earlier one"), self.duplicates),
            )
            if rows
        )

    def write(self, folder: Path) -> None:
        """left_out.csv and duplicates.csv, where there are any."""
        for name, head, rows in (
            ("left_out.csv", ("file", "why"), self.left_out),
            ("duplicates.csv", ("image", "same_pixels_as"), self.duplicates),
        ):
            if rows:
                write_atomic(folder / name, csv_text(head, rows))
