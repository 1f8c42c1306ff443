"""The figures of `carv variance` as images, one panel for each step of the run that was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from carv_3d.report.charts import COLORS
from carv_3d.report.figures import agg_figure, write_figure
from carv_3d.variance.figures import PAPER_ECM, Row, Timesteps

Draw = Callable[[Any, Sequence[Row], Timesteps, dict[str, str]], None]  # axes, rows of a step, method -> color


def write_charts(folder: Path, table: Sequence[Row], by_t: dict[int, Timesteps]) -> list[str]:
    """Write the images to `folder`; returns their names."""
    methods = dict.fromkeys(row.setting.method.name for row in table)
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(methods)}
    images: dict[str, tuple[Draw, str]] = {
        "variance.png": (_variance, "upper right"),
        "ecm.png": (_ecm, "upper left"),
        "re.png": (_re, "upper right"),
        "timesteps.png": (_by_timestep, "lower right"),
    }
    for name, (draw, corner) in images.items():
        _write_panels(folder / name, table, by_t, colors, draw, corner)
    return list(images)


def _write_panels(
    path: Path, table: Sequence[Row], by_t: dict[int, Timesteps], colors: dict[str, str], draw: Draw, corner: str
) -> None:
    steps = list(dict.fromkeys(row.step for row in table))
    figure = agg_figure(4.6 * len(steps) + 0.4, 3.8, layout="constrained")
    panels = figure.subplots(1, len(steps), squeeze=False, sharey=True)[0]
    for axes, step in zip(panels, steps):
        draw(axes, [row for row in table if row.step == step], by_t[step], colors)
        axes.set_title(f"step {step}", fontsize=9)
        axes.grid(alpha=0.25)
        if axes is not panels[0]:
            axes.set_ylabel("")
    if panels[0].get_legend_handles_labels()[0]:
        panels[0].legend(fontsize=6, loc=corner)
    write_figure(figure, path, dpi=130)


def _lines(table: Sequence[Row], colors: dict[str, str]) -> Iterator[tuple[list[Row], dict[str, str]]]:
    """The rows of each method and R, with the style of their line."""
    for name, color in colors.items():
        for R in dict.fromkeys(row.setting.R for row in table):
            line = [row for row in table if (row.setting.method.name, row.setting.R) == (name, R)]
            if line:
                yield line, {"color": color, "linestyle": "-" if R == 1 else ":", "label": f"{name}, R = {R}"}


def _variance(axes: Any, table: Sequence[Row], by_t: Timesteps, colors: dict[str, str]) -> None:
    for line, style in _lines(table, colors):
        x, y = [row.seconds * 1e3 for row in line], [row.variance.value for row in line]
        axes.plot(x, y, marker="o", markersize=3, **style)
    lowest: dict[tuple[int, int], Row] = {}
    for row in table:
        place = (row.setting.R, row.setting.K)
        lowest[place] = min(lowest.get(place, row), row, key=lambda r: r.variance.value)
    for place, row in lowest.items():
        at = (row.seconds * 1e3, row.variance.value)
        axes.annotate(str(place), at, fontsize=6, xytext=(0, -9), ha="center", textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlabel="ms a step", ylabel="variance of the gradient")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_plain_number)
        axis.set_minor_formatter(_plain_number)
        axis.set_tick_params(which="both", labelsize=7)


def _ecm(axes: Any, table: Sequence[Row], by_t: Timesteps, colors: dict[str, str]) -> None:
    for line, style in _lines(table, colors):
        _with_intervals(axes, [(row.setting.K, row.ecm) for row in line], style)
    if any(row.setting.K == 8 for row in table):
        for name, color in colors.items():
            if name in PAPER_ECM:
                axes.plot([8], [PAPER_ECM[name]], "x", color=color)
        axes.plot([], [], "kx", label="the paper, (1, 8)")
    _against_k(axes, table, "ECM against (2, 1) uniform")


def _re(axes: Any, table: Sequence[Row], by_t: Timesteps, colors: dict[str, str]) -> None:
    for line, style in _lines(table, colors):
        values = [(row.setting.K, row.re) for row in line if row.re is not None]
        if values and line[0].setting.method.name != "uniform":
            _with_intervals(axes, values, style)
    _against_k(axes, table, "RE")


def _with_intervals(axes: Any, values: Sequence[tuple[int, Any]], style: dict[str, str]) -> None:
    ends = [[v.value - v.low for _, v in values], [v.high - v.value for _, v in values]]
    x, y = [K for K, _ in values], [v.value for _, v in values]
    axes.errorbar(x, y, ends, marker="o", markersize=3, capsize=2, **style)


def _against_k(axes: Any, table: Sequence[Row], label: str) -> None:
    ticks = sorted({row.setting.K for row in table})
    axes.axhline(1.0, color="0.6", linewidth=0.8)
    axes.set(xscale="log", xlabel="K", ylabel=label)
    axes.set_xticks(ticks, [str(K) for K in ticks])
    axes.minorticks_off()


def _by_timestep(axes: Any, table: Sequence[Row], by_t: Timesteps, colors: dict[str, str]) -> None:
    t, top = by_t.t, max(by_t.norm)
    width = 0.8 * (t[-1] - t[0]) / max(len(t) - 1, 1)
    axes.bar(t, [x / top for x in by_t.norm], width=width, color="0.85", label="RMS |J^T f|, one draw")
    for values, name, style in ((by_t.weight, "proposal w(t)", "-"), (by_t.oracle, "oracle", "--")):
        axes.plot(t, [x / max(values) for x in values], style, color=COLORS[0], label=name)
    axes.set(xlabel="timestep", ylabel="relative", ylim=(0, 1.1))


def _plain_number(value: float, _: Any = None) -> str:
    """A tick's label without powers of ten: "200"."""
    return f"{value:g}"
