"""What makes an asset look right? Each change alone, on the same prompts and seed, against the default.

    ./install.sh python benchmarks/asset_options.py [--variants NAME,...] [--workers 2] [--work DIR] [--out FILE]

Twelve objects, four of them among the worst of `assets.py`, in colors and with a seed that it does not use. The table
has the mean over objects, and the mean difference from the default with its standard error. Done runs are kept in
--work and not repeated. --out: a CSV of all of them.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import asset_changes
import assets
import numpy as np
from bench import joined, run_script, script_parser
from rich.progress import track

from carv_3d.generate.trainer import TextTo3D
from carv_3d.io.files import write_atomic
from carv_3d.io.tables import csv_text

OBJECTS = (
    "table", "mushroom", "house", "hat", "lamp", "crown", "robot", "mug", "bear", "lighthouse", "guitar", "duck",
)  # fmt: skip
SEED = 3
TEACHER_128 = "system.guidance.pretrained_model_name_or_path=carv-tiny-128"
COLUMNS = ("variant", "object", "color", "seconds", "psnr", "iou", "classifier", "nearest")


class Variant(NamedTuple):
    """A change of the default: of the configuration, or of the loop over steps."""

    overrides: tuple[str, ...] = ()
    train: Callable[[TextTo3D], None] = assets.all_steps


VARIANTS = {
    "default": Variant(),
    "ema-0.95": Variant(train=partial(asset_changes.averaged, decay=0.95)),
    "ema-0.98": Variant(train=partial(asset_changes.averaged, decay=0.98)),
    "coarse-to-fine": Variant(train=partial(asset_changes.coarse_to_fine, first=2, until=100)),
    "128-from-150": Variant(train=partial(asset_changes.larger, size=128, begin=150)),
    "no-entropy": Variant(("system.loss.lambda_opaque=0",)),
    "no-reconstruction": Variant(("system.loss.lambda_recon=0",)),
    "orientation": Variant(("system.loss.lambda_orient=1",)),
    "lower-noise": Variant(("system.guidance.max_step_percent=[0.98,0.25,200]",)),
    "higher-noise": Variant(("system.guidance.max_step_percent=[0.98,0.55,200]",)),
    "scale-3": Variant(("system.guidance.guidance_scale=3",)),
    "z-variance": Variant(("system.loss.lambda_z_variance=[0,100,200]",)),
    "distortion": Variant(("system.loss.lambda_distortion=[0,10,200]",)),
    "shading": Variant(train=partial(asset_changes.shaded, share=0.5)),
    "best-of-2": Variant(train=partial(asset_changes.best_seed, runs=2)),
    "carv-tiny-128": Variant((TEACHER_128,)),
    "carv-tiny-128-at-128": Variant((TEACHER_128, "data.width=128", "data.height=128")),
}


def table(rows: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """A row of Markdown for each variant: means over objects, and its difference from the default."""
    lines = []
    for name, runs in rows.items():
        pairs = [(run, rows["default"][obj]) for obj, run in runs.items()]
        cells = []
        for score, digits in (("psnr", 2), ("iou", 3), ("classifier", 3)):
            change = [float(run[score]) - float(usual[score]) for run, usual in pairs]
            mean = np.mean([float(run[score]) for run, _ in pairs])
            error = np.std(change, ddof=1) / math.sqrt(len(change))
            more = "" if name == "default" else f" ({np.mean(change):+.{digits}f} ± {error:.{digits}f})"
            cells.append(f"{mean:.{digits}f}{more}")
        seconds = np.mean([float(run["seconds"]) / float(usual["seconds"]) for run, usual in pairs])
        lines.append(f"| {name} | {' | '.join(cells)} | {seconds:.2f} |")
    return lines


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--variants", type=joined(VARIANTS), default=list(VARIANTS), help="the default is added")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--work", type=Path, default=Path("outputs/asset_options"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names = list(dict.fromkeys(("default", *options.variants)))
    jobs = [j for j in assets.jobs("training", SEED + 1) if j[0] in OBJECTS and j[2] == SEED]
    rows, left = dict[str, dict[str, dict[str, Any]]](), []
    for name in names:
        variant, folder = VARIANTS[name], options.work / name
        folder.mkdir(parents=True, exist_ok=True)
        rows[name] = {row["object"]: row for row in assets.kept(folder)}
        left += [(*job, list(variant.overrides), folder, variant.train) for job in jobs if job[0] not in rows[name]]
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        for row, job in zip(
            track(pool.imap(assets.work, left), total=len(left), description="runs"), left, strict=True
        ):
            rows[job[4].name][row["object"]] = row
    if options.out:
        figures = [{"variant": name, **run} for name, runs in rows.items() for run in runs.values()]
        write_atomic(options.out, csv_text(COLUMNS, ([row[c] for c in COLUMNS] for row in figures)))
    print("\n| variant | PSNR | IoU | classifier: object and color | seconds, ratio |\n|---|---|---|---|---|")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    run_script(main)
