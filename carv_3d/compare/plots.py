"""One image per metric: its mean curves with their bands, against every axis that the runs have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from carv_3d.compare.metrics import AXIS_LABELS, metric
from carv_3d.compare.records import AXES
from carv_3d.compare.tables import Comparison
from carv_3d.io.files import slug
from carv_3d.report.charts import COLORS
from carv_3d.report.figures import agg_figure, drawable, plain_label, write_figure
from carv_3d.stats.bootstrap import MIN_RUNS


def write_plots(folder: Path, comparison: Comparison) -> list[Path]:
    """curves-<metric>.png in `folder` for every metric."""
    paths = []
    for name in comparison.metrics:
        path = folder / f"curves-{slug(name)}.png"
        write_figure(_plot(comparison, name), path, dpi=110)
        paths.append(path)
    return paths


def _plot(comparison: Comparison, name: str) -> Any:
    axes = [axis for axis in AXES if (name, axis) in comparison.curves]
    what = metric(name)
    width = 4.2 * len(axes) + 0.8
    figure = agg_figure(width, 3.9)
    figure.subplots_adjust(left=0.75 / width, right=1 - 0.2 / width, bottom=0.14, top=0.87, wspace=0.08)
    grid = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for plot, axis in zip(grid, axes):
        for curve in comparison.curves[name, axis]:
            shade = COLORS[comparison.methods.index(curve.method) % len(COLORS)]
            shape = {"marker": "o"} if len(curve.x) == 1 else {}
            x, mean, low, high = map(drawable, (curve.x, curve.mean, curve.low, curve.high))
            plot.plot(x, mean, color=shade, label=plain_label(curve.method), **shape)
            plot.fill_between(x, low, high, color=shade, alpha=0.16, linewidth=0)
        plot.set_xlabel(AXIS_LABELS[axis])
        plot.grid(alpha=0.3)
    grid[0].set_ylabel(plain_label(what.label))
    grid[0].legend(loc="best", fontsize=9)
    many = any(comparison.prompts)  # a run that has none is of many
    counts = sorted({curve.runs for axis in axes for curve in comparison.curves[name, axis]})
    each = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    size = f"{each} run(s) each" + (f", {len(comparison.prompts)} prompt(s)" if many else "")
    over = "prompts and seeds" if many else "seeds"
    most = max(curve.independent for axis in axes for curve in comparison.curves[name, axis])
    least = f"{MIN_RUNS} {'prompts' if len(comparison.prompts) > 1 else 'runs'}"
    band = f"band: 95 % bootstrap over {over}" if most >= MIN_RUNS else f"no band below {least}"
    figure.suptitle(f"{plain_label(what.title)}: mean of {size}; {band}", fontsize=11)
    return figure
