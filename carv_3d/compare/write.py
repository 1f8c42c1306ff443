"""What a comparison leaves in its folder: CSV, PNG and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from carv_3d.compare.page import render_page
from carv_3d.compare.plots import write_plots
from carv_3d.compare.records import RunRecord, check_comparable
from carv_3d.compare.tables import Comparison, compare, write_tables
from carv_3d.io.files import make_folder, write_atomic


def write_comparison(
    folder: Path,
    runs: Sequence[RunRecord],
    baseline: str | None = None,
    scores: Sequence[str] = (),
    command: str = "",
    facts: Sequence[tuple[str, str]] = (),
) -> Comparison:
    """Compare `runs` and write tables, images and compare.html to `folder`; see `compare` for the rest."""
    comparison = compare(runs, check_comparable(runs, baseline), scores)
    page = render_page(comparison, command, facts)  # before the charts: it reads the runs' images and models
    make_folder(folder)
    write_tables(folder, comparison)
    write_plots(folder, comparison)
    write_atomic(folder / "compare.html", page)
    return comparison


def terminal_table(comparison: Comparison) -> list[str]:
    """The notes, and the ratios over all prompts, as lines of text."""
    lines = [f"Note: {note}." for note in comparison.notes]
    for r in comparison.times:
        if r.prompt == "" and r.axis in ("seconds", "steps"):
            sides = f"{r.runs} runs" if r.runs == r.baseline_runs else f"{r.runs} and {r.baseline_runs} runs"
            sides += f" of {len(comparison.prompts)} prompts" if len(comparison.prompts) > 1 else ""
            text = f"{r.method}: {r.metric}, {r.axis} to the baseline's final {r.target:.3g}: {r.text()}"
            lines.append(f"{text} ({sides})")
    return lines
