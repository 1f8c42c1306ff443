"""The figures as a table on the terminal, as CSV and as images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from carv_3d.io.files import write_atomic, write_via
from carv_3d.io.tables import csv_text
from carv_3d.report.charts import COLORS
from carv_3d.stats.bootstrap import MIN_SAMPLES, Interval
from carv_3d.variance.figures import PAPER_ECM, PAPER_ORACLE, Row, Timesteps

COLUMNS = (
    "step", "method", "R", "K", "batches", "variance", "variance_low", "variance_high", "s_out2", "v_in",
    "upstream_share", "seconds", "ecm", "ecm_low", "ecm_high", "ecm_bound", "re", "re_low", "re_high", "paper_ecm",
    "paper_re",
)  # fmt: skip


def write_csv(path: Path, found: Sequence[Row]) -> None:
    """One line a setting and step; seconds by phase in columns of their own."""
    phases = sorted({name for row in found for name in row.phases} - {"step"})
    columns = [*COLUMNS, *(f"seconds_{name}" for name in phases)]
    write_atomic(path, csv_text(columns, (_cells(row, phases) for row in found)))


def _cells(row: Row, phases: Sequence[str]) -> list[Any]:
    e, re = row.entry, row.re or Interval(math.nan)
    return [
        row.step, e.method.name, e.R, e.K, row.blocks, row.variance.value, row.variance.low, row.variance.high,
        row.s_out2, row.v_in, row.upstream_share, row.seconds, row.ecm.value, row.ecm.low, row.ecm.high, row.bound,
        re.value, re.low, re.high, row.paper_ecm, paper_re(row), *(row.phases.get(name, 0.0) for name in phases),
    ]  # fmt: skip


def paper_re(row: Row) -> str:
    """The paper's range at the same place, "1.25-1.31", or nothing."""
    return "" if row.paper_re is None else "-".join(f"{x:.2f}" for x in row.paper_re)


def table(found: Sequence[Row], baseline: Row) -> Any:
    """A rich table of one point: variances over the baseline's."""
    from rich.table import Table

    note = "" if baseline.ecm.known else f"; intervals are shown from {MIN_SAMPLES} on"
    out = Table(title=f"step {baseline.step}, {baseline.blocks} batches{note}", title_justify="left")
    for name in ("method", "R", "K", "variance", "upstream", "ms", "ECM", "paper", "bound", "RE", "paper"):
        out.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    base = baseline.variance.value
    for row in found:
        e = row.entry
        out.add_row(
            e.method.name, str(e.R), str(e.K), f"{row.variance.value / base:.3f}", f"{row.upstream_share:.0%}",
            f"{row.seconds * 1e3:.0f}", row.ecm.text(), "" if row.paper_ecm is None else f"{row.paper_ecm:g}",
            f"{row.bound:.2f}", "" if row.re is None else row.re.text(), paper_re(row),
        )  # fmt: skip
    return out


def print_table(one: Any, console: Any) -> None:
    """On a console that may be narrower than the table, as a pipe is: whole, not cut."""
    from rich.console import Console
    from rich.measure import Measurement

    wide = Console(width=1000, file=console.file)
    needed = Measurement.get(wide, wide.options, one).maximum
    if console.width < needed:
        console = Console(width=needed, file=console.file)
    console.print(one)


def plain_number(value: float, _: Any = None) -> str:
    """A tick's label without powers of ten: "200"."""
    return f"{value:g}"


def summary(found: Sequence[Row], baseline: Row, by_t: Timesteps) -> list[str]:
    """What a point comes to, in sentences."""
    best = max(found, key=lambda row: row.ecm.value)
    phases = baseline.phases
    rest = phases["step"] - phases["denoise"]
    limits = f"(the paper: {PAPER_ORACLE[0]:.0%} to {PAPER_ORACLE[1]:.0%})"
    reached = f"reaches {by_t.share:.0%} of the oracle's reduction {limits}"
    if by_t.share <= 0:
        reached = f"gains nothing over uniform timesteps here, where an oracle would {limits}"
    return [
        f"Baseline: (2, 1) uniform, {baseline.seconds * 1e3:.0f} ms; upstream is {baseline.upstream_share:.0%} of its "
        f"variance, and {phases['denoise'] / rest:.2f} of the rest's seconds go to denoising.",
        f"Best: {best.entry.method.name} at ({best.entry.R}, {best.entry.K}), ECM {best.ecm.text()}; free draws "
        f"without noise would have {best.bound:.2f}.",
        f"The weight proposal {reached}.",
    ]


def write_figures(folder: Path, found: Sequence[Row], by_t: dict[int, Timesteps]) -> list[str]:
    """The images, in `folder`; their names."""
    points = list(dict.fromkeys(row.step for row in found))
    names = list(dict.fromkeys(row.entry.method.name for row in found))
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(names)}

    def variance(axes: Any, step: int) -> None:
        for name in names:
            for R in dict.fromkeys(row.entry.R for row in found):
                mine = [r for r in found if (r.step, r.entry.method.name, r.entry.R) == (step, name, R)]
                if not mine:
                    continue
                x, y = [r.seconds * 1e3 for r in mine], [r.variance.value for r in mine]
                axes.plot(x, y, marker="o", markersize=3, color=colors[name], linestyle="-" if R == 1 else ":",
                          label=f"{name}, R = {R}")  # fmt: skip
        lowest: dict[tuple[int, int], Row] = {}
        for r in (r for r in found if r.step == step):
            place = (r.entry.R, r.entry.K)
            lowest[place] = min(lowest.get(place, r), r, key=lambda one: one.variance.value)
        for place, r in lowest.items():
            axes.annotate(str(place), (r.seconds * 1e3, r.variance.value), fontsize=6, xytext=(0, -9), ha="center",
                          textcoords="offset points")  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="ms a step", ylabel="variance of the gradient")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(plain_number)
            axis.set_minor_formatter(plain_number)
            axis.set_tick_params(which="both", labelsize=7)

    def against_k(which: str) -> Any:
        def draw(axes: Any, step: int) -> None:
            for name in names:
                for R in dict.fromkeys(row.entry.R for row in found):
                    mine = [r for r in found if (r.step, r.entry.method.name, r.entry.R) == (step, name, R)]
                    values = [(r.entry.K, getattr(r, which)) for r in mine if getattr(r, which) is not None]
                    if not values or (which == "re" and name == "uniform"):
                        continue
                    x, y = [k for k, _ in values], [v.value for _, v in values]
                    low, high = [v.value - v.low for _, v in values], [v.high - v.value for _, v in values]
                    axes.errorbar(x, y, [low, high], marker="o", markersize=3, capsize=2, color=colors[name],
                                  linestyle="-" if R == 1 else ":", label=f"{name}, R = {R}")  # fmt: skip
            if which == "ecm" and any(r.entry.K == 8 for r in found):
                for name in names:
                    if name in PAPER_ECM:
                        axes.plot([8], [PAPER_ECM[name]], "x", color=colors[name])
                axes.plot([], [], "kx", label="the paper, (1, 8)")
            axes.axhline(1.0, color="0.6", linewidth=0.8)
            axes.set(xscale="log", xlabel="K", ylabel="ECM against (2, 1) uniform" if which == "ecm" else "RE")
            axes.set_xticks(sorted({r.entry.K for r in found}), [str(k) for k in sorted({r.entry.K for r in found})])
            axes.minorticks_off()

        return draw

    def by_timestep(axes: Any, step: int) -> None:
        one = by_t[step]
        top = max(one.norm)
        axes.bar(one.t, [x / top for x in one.norm], width=0.8 * (one.t[-1] - one.t[0]) / max(len(one.t) - 1, 1),
                 color="0.85", label="RMS |J^T f|, one draw")  # fmt: skip
        for values, name, style in ((one.weight, "proposal w(t)", "-"), (one.oracle, "oracle", "--")):
            axes.plot(one.t, [x / max(values) for x in values], style, color=COLORS[0], label=name)
        axes.set(xlabel="timestep", ylabel="relative", ylim=(0, 1.1))

    images = {
        "variance.png": (variance, "upper right"), "ecm.png": (against_k("ecm"), "upper left"),
        "re.png": (against_k("re"), "upper right"), "timesteps.png": (by_timestep, "lower right"),
    }  # fmt: skip
    for name, (draw, corner) in images.items():
        _panels(folder / name, points, draw, corner)
    return list(images)


def _panels(path: Path, points: Sequence[int], draw: Any, corner: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(points) + 0.4, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(points), squeeze=False, sharey=True)[0]
    for one, step in zip(axes, points):
        draw(one, step)
        one.set_title(f"step {step}", fontsize=9)
        one.grid(alpha=0.25)
        if one is not axes[0]:
            one.set_ylabel("")
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(fontsize=6, loc=corner)

    def write(temporary: Path) -> None:
        figure.savefig(temporary, dpi=130)

    write_via(path, write)


def write_timesteps(path: Path, by_t: dict[int, Timesteps]) -> None:
    """By point and timestep: the gradient's RMS norm and both proposals; oracle_share is of the point."""
    rows = [
        [step, *values, one.share]
        for step, one in by_t.items()
        for values in zip(one.t, one.norm, one.weight, one.oracle)
    ]
    write_atomic(path, csv_text(["step", "t", "norm", "weight", "oracle", "oracle_share"], rows))
