"""One image per metric: its mean curves with their bands, against every axis that the runs have."""

from __future__ import annotations

from pathlib import Path

from carv_3d.compare.metrics import AXIS_LABELS, metric
from carv_3d.compare.records import AXES
from carv_3d.compare.tables import Comparison
from carv_3d.io.files import slug, write_via
from carv_3d.report.charts import COLORS
from carv_3d.stats.bootstrap import MIN_RUNS


def write_plots(folder: Path, comparison: Comparison) -> list[Path]:
    """curves-<metric>.png in `folder` for every metric."""
    paths = []
    for name in comparison.metrics:
        path = folder / f"curves-{slug(name)}.png"
        write_via(path, lambda temporary, name=name: _plot(temporary, comparison, name))  # type: ignore[misc]
        paths.append(path)
    return paths


def _plot(path: Path, comparison: Comparison, name: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axes = [axis for axis in AXES if (name, axis) in comparison.curves]
    what = metric(name)
    width = 4.2 * len(axes) + 0.8
    figure = Figure(figsize=(width, 3.9))
    figure.subplots_adjust(left=0.75 / width, right=1 - 0.2 / width, bottom=0.14, top=0.87, wspace=0.08)
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for plot, axis in zip(grid, axes):
        for curve in comparison.curves[name, axis]:
            shade = COLORS[comparison.methods.index(curve.method) % len(COLORS)]
            shape = {"marker": "o"} if len(curve.x) == 1 else {}
            plot.plot(curve.x, curve.mean, color=shade, label=_plain(curve.method), **shape)
            plot.fill_between(curve.x, curve.low, curve.high, color=shade, alpha=0.16, linewidth=0)
        plot.set_xlabel(AXIS_LABELS[axis])
        plot.grid(alpha=0.3)
    grid[0].set_ylabel(_plain(what.label))
    grid[0].legend(loc="best", fontsize=9)
    many = any(comparison.prompts)  # a run that has none is of many
    counts = sorted({curve.runs for axis in axes for curve in comparison.curves[name, axis]})
    each = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    size = f"{each} run(s) each" + (f", {len(comparison.prompts)} prompt(s)" if many else "")
    over = "prompts and seeds" if many else "seeds"
    most = max(curve.independent for axis in axes for curve in comparison.curves[name, axis])
    least = f"{MIN_RUNS} {'prompts' if len(comparison.prompts) > 1 else 'runs'}"
    band = f"band: 95 % bootstrap over {over}" if most >= MIN_RUNS else f"no band below {least}"
    figure.suptitle(f"{_plain(what.title)}: mean of {size}; {band}", fontsize=11)
    figure.savefig(path, dpi=110, format="png")


def _plain(text: str) -> str:
    """`text` for matplotlib, which would read dollar signs as mathematics and hide labels that begin with _."""
    return ("\u200b" + text if text.startswith("_") else text).replace("$", r"\$")
