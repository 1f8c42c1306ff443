"""The convergence table of docs/results: ten prompts, three seeds, both sides at equal wall-clock.

    ./install.sh python benchmarks/convergence.py [--scene default|voxel|hash-grid] [--seeds 3] [--budget SECONDS]
        [--work DIR]

Both sides are tuned with the same effort first: six variants each (two allocations at three learning rates), on two
prompts that are not among the ten, for the same seconds. Of each side the variant with the best final IoU is taken.
Then both run on the ten prompts, interleaved, and the table shows the seconds and steps to the baseline's final score.
It takes hours. It can be stopped at any time, and the same command resumes it. --engine ray spreads it. The table's
figures go to convergence-SCENE.csv in --work.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from bench import run_script, script_parser

from carv_3d.compare.command import run_sweep
from carv_3d.compare.methods import Method, parse_method
from carv_3d.compare.request import CompareOptions
from carv_3d.compare.sweep import Sweep
from carv_3d.compare.time_to_target import ratio_text
from carv_3d.core.options import EngineOptions
from carv_3d.errors import CarvError
from carv_3d.generate.config import CONFIGS
from carv_3d.io.files import write_atomic
from carv_3d.io.structured import read_csv
from carv_3d.io.tables import csv_text
from carv_3d.stats.bootstrap import Interval

PROMPTS = (
    "a red mug", "a green tree", "a blue bottle", "a yellow duck", "a white snowman", "a brown chair",
    "an orange mushroom", "a purple vase", "a gray rocket", "a pink donut",
)  # fmt: skip
TUNING = ("a turquoise teapot", "a black hat")
SCORES = {"classifier_object": "classifier: object", "psnr": "PSNR", "iou": "IoU"}
SIDES, AXES = ("baseline", "carv"), ("seconds", "steps", "nfe")
MEAN, RATIO = ("runs", "mean", "low", "high"), ("ratio", "low", "high", "tried")  # columns of both files
OPTIONS = {
    "baseline": ("proposal=uniform", "stratify=none", "antithetic=false"),  # the usual estimator, one draw a render
    "carv": ("proposal=weight", "stratify=render", "antithetic=true"),
}


@dataclass(frozen=True)
class Scene:
    """Of both sides: the configuration, two allocations each, the learning rates, the seconds of a run."""

    config: Path
    allocations: dict[str, tuple[tuple[int, int], ...]]
    rates: tuple[float, float, float]
    budget: float


SCENES = {
    "default": Scene(
        CONFIGS / "carv-tiny.yaml", {"baseline": ((1, 1), (2, 1)), "carv": ((1, 2), (1, 4))}, (0.02, 0.04, 0.08), 30.0
    ),
    "voxel": Scene(  # cheap renders
        CONFIGS / "carv-tiny-voxel.yaml",
        {"baseline": ((1, 1), (2, 1)), "carv": ((1, 2), (1, 4))},
        (0.03, 0.06, 0.12),
        30.0,
    ),
    "hash-grid": Scene(  # expensive upstream work
        CONFIGS / "carv-tiny-hash-grid.yaml",
        {"baseline": ((1, 1), (2, 1)), "carv": ((1, 8), (1, 16))},
        (0.04, 0.08, 0.16),
        60.0,
    ),
}


def method(side: str, allocation: tuple[int, int], rate: float) -> Method:
    """One variant of a side, named by its allocation and rate."""
    R, K = allocation
    options = (f"data.batch_size={R}", f"num_draws={K}", *OPTIONS[side], f"lr={rate:g}")
    return parse_method(f"{side}-R{R}K{K}-lr{rate:g}={','.join(options)}")


def variants(scene: Scene) -> list[Method]:
    """The same number for each side, the baseline's first."""
    return [method(side, rk, r) for side, pair in scene.allocations.items() for rk in pair for r in scene.rates]


def learning_rate(variant: Method) -> float:
    return float(variant.name.rpartition("-lr")[2])


def best(folder: Path, side: str, candidates: list[Method]) -> Method:
    """The variant of a side with the best final IoU over the tuning prompts; says where its rate is the grid's end."""
    scores = {r["method"]: float(r["mean"]) for r in read_csv(folder / "final.csv")[0] if r["metric"] == "iou"}
    chosen = max((m for m in candidates if m.name.startswith(f"{side}-")), key=lambda m: scores[m.name])
    rates = sorted({learning_rate(m) for m in candidates})
    end = ", at the end of the rates that were tried" if learning_rate(chosen) in (rates[0], rates[-1]) else ""
    print(f"{side}: {chosen.name} (final IoU {scores[chosen.name]:.3f} on the tuning prompts{end})")
    return chosen


def figures(folder: Path, sides: list[Method]) -> list[dict[str, str]]:
    """Of each score: the final means of both sides, and on each axis the ratio, as in time_to_target.csv."""
    ratios, means = read_csv(folder / "time_to_target.csv")[0], read_csv(folder / "final.csv")[0]
    rows = []
    for score in SCORES:
        row = {"score": score}
        for side, chosen in zip(SIDES, sides, strict=True):
            mean = next(r for r in means if (r["metric"], r["method"]) == (score, chosen.name))
            row[side] = chosen.name
            row |= {f"{side}_{name}": mean[name] for name in MEAN}
        for axis in AXES:
            reached = [r for r in ratios if (r["metric"], r["axis"], r["prompt"]) == (score, axis, "")]
            row |= {f"{axis}_{name}": reached[0][name] if reached else "" for name in RATIO}
        rows.append(row)
    return rows


def shown_ratio(row: dict[str, str], axis: str) -> str:
    """The ratio on an axis as text; "—" where the score has none."""
    return ratio_text(*(float(row[f"{axis}_{name}"] or "nan") for name in RATIO))


def mean_text(row: dict[str, str], side: str) -> str:
    """A side's final mean as text, with its interval where there is one."""
    return Interval(*(float(row[f"{side}_{name}"] or "nan") for name in MEAN[1:])).text(".3f")


def table(rows: list[dict[str, str]]) -> str:
    """The table in Markdown, of what `figures` gives."""
    lines = [
        "| score | runs | baseline, final | ours, final | seconds, ratio | steps, ratio | NFE, ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        runs = " + ".join(row[f"{side}_runs"] for side in SIDES)
        cells = [*(mean_text(row, side) for side in SIDES), *(shown_ratio(row, axis) for axis in AXES)]
        lines.append(f"| {SCORES[row['score']]} | {runs} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = script_parser(__doc__)
    parser.add_argument("--scene", choices=list(SCENES), default="default")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="the first N of the ten")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=float, help="seconds of training time of each run (30, 60 for hash-grid)")
    parser.add_argument("--points", type=int, default=20, help="evaluations of each run")
    parser.add_argument("--work", type=Path, default=Path("outputs/convergence"))
    parser.add_argument("--engine", choices=EngineOptions.declared()["engine"].choices, default="local")
    parser.add_argument("--address", help="of a Ray cluster")
    parser.add_argument("--workers", type=int, help="of a Ray that is begun here")
    o = parser.parse_args()
    scene = SCENES[o.scene]
    budget = scene.budget if o.budget is None else o.budget
    if not budget > 0 or o.seeds < 1 or not 1 <= o.prompts <= len(PROMPTS) or o.points < 1:
        raise CarvError(f"--budget must be above 0, --seeds and --points at least 1, --prompts 1 to {len(PROMPTS)}")
    work = o.work / o.scene
    where = EngineOptions(engine=o.engine, address=o.address, workers=o.workers)
    settings = {"budget": budget, "points": o.points, "config": scene.config}
    candidates = variants(scene)
    tuning = Sweep(list(TUNING), candidates, **settings)
    status = run_sweep(tuning, CompareOptions(out=work / "tuning"), where)
    if status:
        return status
    sides = [best(work / "tuning", side, candidates) for side in scene.allocations]
    final = Sweep(list(PROMPTS[: o.prompts]), sides, seeds=o.seeds, **settings)
    status = run_sweep(final, CompareOptions(out=work / "runs"), where)
    if status == 0:
        rows = figures(work / "runs", sides)
        write_atomic(o.work / f"convergence-{o.scene}.csv", csv_text(list(rows[0]), (row.values() for row in rows)))
        threads = "a thread for each of Ray's workers" if o.engine == "ray" else f"{torch.get_num_threads()} threads"
        print(
            f"\n{o.scene} scene, {budget:g} s of training time a run, {threads}, torch {torch.__version__}; baseline "
            f"{sides[0].name}, ours {sides[1].name}. Ratios: what ours needs until its mean reaches the baseline's "
            "final mean, over what that needed, with the 95 % bootstrap interval over prompts and seeds.\n"
        )
        print(table(rows))
    return status


if __name__ == "__main__":
    run_script(main)
