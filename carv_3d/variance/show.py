"""The figures of `carv variance` as a table on the terminal, as sentences and as CSV."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from carv_3d.io.files import write_atomic
from carv_3d.io.tables import csv_text
from carv_3d.stats.bootstrap import MIN_SAMPLES, Interval
from carv_3d.variance.figures import PAPER_ORACLE, Row, Timesteps

COLUMNS = (
    "step", "method", "R", "K", "batches", "variance", "variance_low", "variance_high", "s_out2", "v_in",
    "upstream_share", "seconds", "ecm", "ecm_low", "ecm_high", "ecm_bound", "re", "re_low", "re_high", "paper_ecm",
    "paper_re",
)  # fmt: skip


def write_csv(path: Path, table: Sequence[Row]) -> None:
    """One line a setting and step; seconds by phase in columns of their own."""
    phases = sorted({name for row in table for name in row.phases} - {"step"})
    columns = [*COLUMNS, *(f"seconds_{name}" for name in phases)]
    write_atomic(path, csv_text(columns, (_cells(row, phases) for row in table)))


def _cells(row: Row, phases: Sequence[str]) -> list[Any]:
    s, re = row.setting, row.re or Interval(math.nan)
    return [
        row.step, s.method.name, s.R, s.K, row.batches, row.variance.value, row.variance.low, row.variance.high,
        row.s_out2, row.v_in, row.upstream_share, row.seconds, row.ecm.value, row.ecm.low, row.ecm.high, row.bound,
        re.value, re.low, re.high, row.paper_ecm, paper_re(row), *(row.phases.get(name, 0.0) for name in phases),
    ]  # fmt: skip


def write_timesteps(path: Path, by_t: dict[int, Timesteps]) -> None:
    """By step and timestep the gradient's RMS norm and both proposals; oracle_share is of the step."""
    lines = (
        (step, *values, at_step.share)
        for step, at_step in by_t.items()
        for values in zip(at_step.t, at_step.norm, at_step.weight, at_step.oracle)
    )
    write_atomic(path, csv_text(["step", "t", "norm", "weight", "oracle", "oracle_share"], lines))


def paper_re(row: Row) -> str:
    """The paper's range at the same (R, K), "1.25-1.31", or nothing."""
    return "" if row.paper_re is None else "-".join(f"{x:.2f}" for x in row.paper_re)


def rich_table(table: Sequence[Row]) -> Any:
    """A rich table of one step, the baseline first: variances are over its."""
    from rich.table import Table

    baseline = table[0]
    note = "" if baseline.ecm.known else f"; intervals are shown from {MIN_SAMPLES} on"
    out = Table(title=f"step {baseline.step}, {baseline.batches} batches{note}", title_justify="left")
    for name in ("method", "R", "K", "variance", "upstream", "ms", "ECM", "paper", "bound", "RE", "paper"):
        out.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in table:
        s = row.setting
        out.add_row(
            s.method.name, str(s.R), str(s.K), f"{row.variance.value / baseline.variance.value:.3f}",
            f"{row.upstream_share:.0%}", f"{row.seconds * 1e3:.0f}", row.ecm.text(),
            "" if row.paper_ecm is None else f"{row.paper_ecm:g}", f"{row.bound:.2f}",
            "" if row.re is None else row.re.text(), paper_re(row),
        )  # fmt: skip
    return out


def print_table(table: Any, console: Any) -> None:
    """A rich table, whole on a console that is narrower, as a pipe is."""
    from rich.console import Console
    from rich.measure import Measurement

    wide = Console(width=1000, file=console.file)
    needed = Measurement.get(wide, wide.options, table).maximum
    if console.width < needed:
        console = Console(width=needed, file=console.file)
    console.print(table)


def summary(table: Sequence[Row], by_t: Timesteps) -> list[str]:
    """The rows of one step in sentences; the baseline is the first."""
    baseline, best = table[0], max(table, key=lambda row: row.ecm.value)
    phases, s = baseline.phases, best.setting
    rest = phases["step"] - phases["denoise"]
    limits = f"(the paper: {PAPER_ORACLE[0]:.0%} to {PAPER_ORACLE[1]:.0%})"
    reached = f"reaches {by_t.share:.0%} of the oracle's reduction {limits}"
    if by_t.share <= 0:
        reached = f"gains nothing over uniform timesteps here, where an oracle would {limits}"
    return [
        f"Baseline: (2, 1) uniform, {baseline.seconds * 1e3:.0f} ms; upstream is {baseline.upstream_share:.0%} of its "
        f"variance, and {phases['denoise'] / rest:.2f} of the rest's seconds go to denoising.",
        f"Best: {s.method.name} at ({s.R}, {s.K}), ECM {best.ecm.text()}; free draws without noise would have "
        f"{best.bound:.2f}.",
        f"The weight proposal {reached}.",
    ]
