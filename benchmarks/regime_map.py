"""The regime map: ECM over the cost of upstream work and over its share of the variance, with the built-in trainer.

    ./install.sh python benchmarks/regime_map.py [--prompt "a red mug"] [--scales 1,3.5,7.5,20] [--at 30,150,270]
        [--upstream 0.25,1,4,16] [--methods uniform,is+strat] [--budget SECONDS] [--config YAML] [--out DIR]
        [--also REGIMES.CSV]

For each guidance scale a scene is trained and frozen at each point, and measured as `carv variance` does. What its
steps cost outside of denoising is then multiplied by each factor of --upstream: a simulated upstream cost, as in Figure
21 of arXiv 2605.21489. A line of regimes.csv has the two ratios that decide: the denoising of a draw over the upstream
seconds of a render, and the upstream share of one uniform draw's variance. It has the best (R, K) and method there, its
ECM with its interval (from eight batches on), and the bound: upstream variance alone at free draws. regimes.png marks
the paper's regime, a tenth and a tenth; --also draws the lines of earlier maps into it. Measured batches are kept in
--out, and not repeated.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from bench import joined, run_script, script_parser, whole_numbers

from carv_3d.errors import CarvError
from carv_3d.generate.config import load_config
from carv_3d.generate.trainer import TextTo3D, load_teacher
from carv_3d.io.files import make_folder, write_atomic, write_via
from carv_3d.io.structured import read_csv
from carv_3d.io.tables import csv_text
from carv_3d.runs.progress import Display
from carv_3d.stats.bootstrap import Interval
from carv_3d.variance.benchmark import Batch, VarianceBenchmark
from carv_3d.variance.command import FORMAT, KeptBatches, VarianceRequest, go_to, measure, spent
from carv_3d.variance.figures import phase_seconds, rows
from carv_3d.variance.methods import Setting, method

PAPER = (0.1, 0.1)  # draws at a tenth of the upstream cost, a tenth of the variance upstream
ONE_DRAW = Setting(1, 1, method("uniform"))  # whose upstream share places a regime on the map


@dataclass
class Regime:
    """A line of regimes.csv."""

    guidance_scale: float
    step: int
    upstream: float
    cost_ratio: float
    upstream_share: float
    method: str
    R: int
    K: int
    ecm: float
    ecm_low: float
    ecm_high: float
    bound: float
    batches: int = 0


def regimes(
    scale: float, step: int, settings: list[Setting], batches: list[Batch], factors: list[float]
) -> list[Regime]:
    """The best of each simulated upstream cost, from one scene's batches."""
    most = max((s for s in settings if s.R == 1), key=lambda s: s.K)
    phases = phase_seconds(most, batches)
    out = []
    for factor in factors:
        table = rows(step, settings, batches, upstream=factor)
        share = next(row.upstream_share for row in table if row.setting.key == ONE_DRAW.key)
        best = max(table, key=lambda row: row.ecm.value)
        ratio = phases["denoise"] / most.K / (factor * (phases["step"] - phases["denoise"]))
        s, ecm = best.setting, best.ecm
        place = (scale, step, factor, ratio, share, s.method.name, s.R, s.K)
        out.append(Regime(*place, ecm.value, ecm.low, ecm.high, best.bound, best.batches))
    return out


def places(out: Path, scale: float, step: int) -> tuple[Path, Path]:
    """Where the scene of a step and its batches are."""
    name = f"scale-{scale:g}-step-{step}"
    return out / f"{name}.scene", out / f"{name}.json"


def image(regimes_shown: list[Regime], path: Path) -> None:
    """Both ratios on logarithmic axes, the best ECM as color (of its logarithm) and number."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    x, y = [r.cost_ratio for r in regimes_shown], [max(r.upstream_share, 1e-3) for r in regimes_shown]
    ends = LogNorm(1, max(2.0, *(r.ecm for r in regimes_shown)))
    dots = axes.scatter(x, y, c=[r.ecm for r in regimes_shown], norm=ends, cmap="viridis", s=60, zorder=2)
    for r, a, b in zip(regimes_shown, x, y):
        axes.annotate(f"{r.ecm:.1f}", (a, b), fontsize=6, xytext=(5, 3), textcoords="offset points")
    axes.plot(*PAPER, marker="*", markersize=16, color="none", markeredgecolor="#c8553d", label="the paper's regime")
    axes.set(xscale="log", yscale="log", xlabel="seconds of a draw / seconds of a render's upstream work",
             ylabel="upstream share of one uniform draw's variance")  # fmt: skip
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, markerscale=0.5)
    bar = figure.colorbar(dots, label="ECM of the best (R, K) and method against (2, 1) uniform")
    for axis in (axes.xaxis, axes.yaxis, bar.ax.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("" if axis is axes.xaxis else "{x:g}")  # less than a decade needs its in-between

    def write(temporary: Path) -> None:
        figure.savefig(temporary, dpi=130)

    write_via(path, write)


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--prompt", default="a red mug")
    parser.add_argument("--scales", type=numbers, default=[1.0, 3.5, 7.5, 20.0])
    parser.add_argument("--at", type=whole_numbers, default=(30, 150, 270))
    parser.add_argument("--upstream", type=numbers, default=[0.25, 1.0, 4.0, 16.0])
    parser.add_argument("--methods", type=joined(), default=["uniform", "is+strat"])
    parser.add_argument("--draws", type=whole_numbers, default=(1, 2, 4, 8, 16))
    parser.add_argument("--budget", type=float, default=1800.0, help="seconds of measuring, in all")
    parser.add_argument("--tolerance", type=float, default=0.1)
    parser.add_argument("--out", type=Path, default=Path("outputs/regime-map"))
    parser.add_argument("--config", type=Path, help="YAML of the scene; the built-in settings without one")
    parser.add_argument("--also", type=Path, action="append", default=[], help="an earlier regimes.csv; repeat it")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="options of the run, as in carv generate")
    o = parser.parse_args()
    request = VarianceRequest(source=Path(), methods=o.methods, K=o.draws, budget=o.budget, tolerance=o.tolerance)
    settings = list({s.key: s for s in [*request.settings(), ONE_DRAW]}.values())
    earlier = [line for path in o.also for line in lines(path)]
    display, teacher = Display(), load_teacher(load_config(o.config, o.overrides, o.prompt))
    make_folder(o.out)
    each = o.budget / (len(o.scales) * len(o.at))
    measured: list[Regime] = []
    for scale in o.scales:
        overrides = [*o.overrides, f"system.guidance.guidance_scale={scale}"]
        trainer = TextTo3D(load_config(o.config, overrides, o.prompt), teacher)
        for step in sorted(o.at):
            scene, path = places(o.out, scale, step)
            depends_on: dict[str, Any] = {
                "format": FORMAT,
                "config": str(o.config or ""), "prompt": o.prompt, "overrides": overrides, "step": step,
                "settings": [s.key for s in settings],
            }  # fmt: skip
            kept = KeptBatches(path, depends_on)
            batches = kept.at(step)
            kept.save()  # says whose the scene is, before there is one
            go_to(trainer, step, None, scene, display)
            left = each - spent(batches)
            measure(VarianceBenchmark(trainer, settings), batches, step, o.tolerance, left, kept.save, display)
            measured += regimes(scale, step, settings, batches, o.upstream)
            for r in measured[-len(o.upstream) :]:
                display.say(
                    f"scale {scale:g}, step {step}, upstream x {r.upstream:g}: a draw costs {r.cost_ratio:.2f} of it, "
                    f"upstream share {r.upstream_share:.0%}; {r.method} at ({r.R}, {r.K}): ECM "
                    f"{Interval(r.ecm, r.ecm_low, r.ecm_high).text()}, bound {r.bound:.2f}, {r.batches} batches"
                )
    write_atomic(o.out / "regimes.csv", csv_text([f.name for f in fields(Regime)], map(astuple, measured)))
    image([*measured, *earlier], o.out / "regimes.png")
    display.say(f"Done: regimes.csv and regimes.png are in {o.out}")


def line(r: Regime) -> str:
    """A row of a page's table."""
    cost = "as measured" if r.upstream == 1 else f"upstream x {r.upstream:g}"
    ecm = Interval(r.ecm, r.ecm_low, r.ecm_high).text()
    place = f"{r.step} | {r.upstream_share:.0%} | {r.cost_ratio:.2f}, {cost}"
    return f"| {place} | ({r.R}, {r.K}) {r.method} | {ecm} | {r.batches} |"


def lines(path: Path) -> list[Regime]:
    """The lines of a regimes.csv."""
    rows, _ = read_csv(path, "name the regimes.csv of another map with --also")
    kinds: dict[str, Any] = {"int": int, "float": lambda text: float(text or math.nan), "str": str}
    older = {"batches": "0"}  # of maps that did not say how many
    try:
        return [Regime(**{f.name: kinds[str(f.type)]((older | row)[f.name]) for f in fields(Regime)}) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise CarvError(f"--also {path} is no regimes.csv of this command") from error


if __name__ == "__main__":
    run_script(main)
