"""The ECM and RE tables of docs/results: `carv variance` on five prompts at three points of a run, side by side.

    ./install.sh python benchmarks/variance_table.py [--scene default|voxel|hash-grid] [--prompts 5] [--budget 300]
        [--at 20,100,180] [--renders 1] [--draws 2,4,8] [--methods uniform,is,strat,is+strat,is+strat+antithetic]
        [--against is+strat+antithetic] [--work DIR]

The figures of all prompts together go to variance-SCENE.csv in --work.
--budget is of measuring, in seconds for each prompt. A figure is the geometric mean over prompts, with the least and
the largest of them; each prompt's own intervals are in its variance.csv in --work. --against adds a table of each
method over that one at the same (R, K), from the same batches, with an interval. It can be stopped at any
time, and the same command resumes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench import run_script, script_parser, whole_numbers

from carv_3d.errors import CarvError
from carv_3d.generate.config import CONFIGS, load_config
from carv_3d.generate.trainer import load_teacher
from carv_3d.io.files import slug, write_atomic
from carv_3d.io.structured import read_csv, read_json
from carv_3d.io.tables import csv_text
from carv_3d.stats.bootstrap import Interval
from carv_3d.variance.benchmark import Batch
from carv_3d.variance.command import VarianceRequest, run
from carv_3d.variance.figures import rows
from carv_3d.variance.methods import Setting

PROMPTS = ("a red mug", "a green tree", "a blue chair", "an orange rocket", "a white snowman")
METHODS = "uniform,is,strat,is+strat,is+strat+antithetic"
SCENES = {
    "default": CONFIGS / "carv-tiny.yaml",
    "voxel": CONFIGS / "carv-tiny-voxel.yaml",  # cheap renders
    "hash-grid": CONFIGS / "carv-tiny-hash-grid.yaml",  # expensive upstream work
}


def over_prompts(values: Sequence[float]) -> str:
    """The geometric mean, and the ends; "—" where there is none, as of a bound whose variance may be 0."""
    if not all(0 < x < math.inf for x in values):
        return "—"
    mean = math.exp(sum(map(math.log, values)) / len(values))
    return f"{mean:.2f}" if len(values) == 1 else f"{mean:.2f} ({min(values):.2f}–{max(values):.2f})"


def table(tables: Sequence[Sequence[dict[str, str]]]) -> str:
    """Markdown, of the variance.csv of each prompt: a row for each point, method and (R, K)."""
    lines = [
        "| step | method | (R, K) | batches | a draw's cost | upstream share | ECM | the paper's | bound | of it | RE "
        "| the paper's |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for same in zip(*tables, strict=True):
        first = same[0]

        def mean(name: str, same: Sequence[dict[str, str]] = same) -> float:
            return sum(float(row[name]) for row in same) / len(same)

        R, K = int(first["R"]), int(first["K"])
        batches = min(int(row["batches"]) for row in same)
        upstream = mean("seconds") - mean("seconds_denoise")
        ecm = [float(row["ecm"]) for row in same]
        bound = [float(row["ecm_bound"]) for row in same]
        re = over_prompts([float(row["re"]) for row in same]) if first["re"] else "—"
        share = over_prompts([a / b for a, b in zip(ecm, bound)]).split(" ")[0]
        reached = share if share == "—" else f"{float(share):.0%}"
        lines.append(
            f"| {first['step']} | {first['method']} | ({R}, {K}) | {batches} "
            f"| {mean('seconds_denoise') / K / upstream:.2f} "
            f"| {mean('upstream_share'):.0%} | {over_prompts(ecm)} | {first['paper_ecm'] or '—'} "
            f"| {over_prompts(bound).split(' ')[0]} | {reached} | {re} | {first['paper_re'] or '—'} |"
        )
    return "\n".join(lines)


def together(tables: Sequence[Sequence[dict[str, str]]], prompts: Sequence[str]) -> str:
    """A CSV of every prompt's variance.csv, the prompt in the first column."""
    columns = list(tables[0][0])
    lines = ([prompt, *row.values()] for prompt, figures in zip(prompts, tables) for row in figures)
    return csv_text(["prompt", *columns], lines)


def pooled(intervals: Sequence[Interval]) -> Interval:
    """The geometric mean of ratios that were measured apart, each with its 95 % interval; of these prompts, not of
    prompts in general."""
    if not all(0 < x.value < math.inf for x in intervals):
        return Interval(math.nan)
    logs = [math.log(x.value) for x in intervals]
    if not all(x.low > 0 and x.high < math.inf for x in intervals):  # too few batches to separate a variance from 0
        return Interval(math.exp(sum(logs) / len(logs)))
    errors = [(math.log(x.high) - math.log(x.low)) / (2 * 1.96) for x in intervals]
    mean, error = sum(logs) / len(logs), math.hypot(*errors) / len(errors)
    return Interval(math.exp(mean), math.exp(mean - 1.96 * error), math.exp(mean + 1.96 * error))


def over(folders: Sequence[Path], settings: Sequence[Setting], name: str) -> str:
    """Markdown: the ECM of each method over that of method `name` at the same (R, K)."""
    lines = [f"| step | method | (R, K) | variance, {name} = 1 | ECM over it |", "|---|---|---|---|---|"]
    kept = [read_json(folder / "batches.json")["batches"] for folder in folders]
    rivals = [s for s in settings if s.method.name == name]
    for step in sorted(map(int, kept[0])):
        batches = [[Batch(**b) for b in by_step[str(step)]] for by_step in kept]
        for rival in rivals:
            same = [s for s in settings if (s.R, s.K) == (rival.R, rival.K)]
            tables = [rows(step, same, by_prompt, rival) for by_prompt in batches]
            own = same.index(rival)
            for i, s in enumerate(same):
                if s == rival:
                    continue
                less = [table[i].variance.value / table[own].variance.value for table in tables]
                lines.append(
                    f"| {step} | {s.method.name} | ({s.R}, {s.K}) | {over_prompts(less)} "
                    f"| {pooled([table[i].ecm for table in tables]).text()} |"
                )
    return "\n".join(lines)


def main() -> int:
    parser = script_parser(__doc__)
    parser.add_argument("--scene", choices=list(SCENES), default="default")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="the first N of the five")
    parser.add_argument("--budget", type=float, default=300.0, help="seconds of measuring for each prompt")
    parser.add_argument("--at", type=whole_numbers, default=(20, 100, 180))
    parser.add_argument("--renders", type=whole_numbers, default=(1,))
    parser.add_argument("--draws", type=whole_numbers, default=(2, 4, 8))
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--against", metavar="METHOD", help="compare the others with this one, at the same (R, K)")
    parser.add_argument("--work", type=Path, default=Path("outputs/variance-table"))
    o = parser.parse_args()
    if not 1 <= o.prompts <= len(PROMPTS):
        raise CarvError(f"--prompts is {o.prompts}; it must be 1 to {len(PROMPTS)}")
    prompts = PROMPTS[: o.prompts]
    shared: dict[str, Any] = {"budget": o.budget, "R": o.renders, "K": o.draws, "at": o.at}
    shared["methods"] = o.methods.split(",")
    folders = [o.work / f"{o.scene}-{slug(prompt)}" for prompt in prompts]
    requests = [
        VarianceRequest(source=SCENES[o.scene], prompt=prompt, out=folder, resume=folder.exists(), **shared)
        for prompt, folder in zip(prompts, folders)
    ]
    settings = requests[0].settings()  # refuses methods that do not exist
    if o.against and o.against not in {s.method.name for s in settings}:
        raise CarvError(f"--against is {o.against}, which is none of --methods")
    teacher = load_teacher(load_config(SCENES[o.scene], prompt=prompts[0]))
    tables = []
    for request, folder in zip(requests, folders):
        status = run(request, teacher)
        if status:
            return status
        tables.append(read_csv(folder / "variance.csv")[0])
    print(
        f"\n{o.scene} scene, {', '.join(prompts)}; {o.budget:g} s of measuring each, {torch.get_num_threads()} "
        f"threads, torch {torch.__version__}. A draw's cost: its denoising over the rest of a step. Bound: free draws "
        "without noise at this R.\n"
    )
    print(table(tables))
    write_atomic(o.work / f"variance-{o.scene}.csv", together(tables, prompts))
    if o.against:
        print(f"\n{over(folders, settings, o.against)}")
    return 0


if __name__ == "__main__":
    run_script(main)
