"""Does attribution find images with the prompt's object and color? carv-tiny, and the gradients that come with it.

Queries are prompts of training combinations, asked as `carv attribute` asks them: four images each, and draws until
they make less than a tenth of the scores' error variance. --kind images asks about training images whose gradients
do not come with the package, each with its caption. For each query, the share of the 20 most influential images with
the same object and with the same color, against the share among all; whether the ranking differs from chance; the mean
probability of the 20 to be in the true top 20; and the CPU seconds.

--kind assets asks about the assets of runs of `carv generate`, in --runs FOLDER; those that are missing are made.

    ./install.sh python benchmarks/attribution_sense.py [--queries 40] [--part report] [--kind prompts|images|assets]
        [--methods d-trak-relatif,d-trak,cosine] [--ridges 0.3,1,3] [--threads 2]
        [--out docs/results/attribution-sense.csv]

The combinations are dealt out once: `--part validation` has 24 of them, on which the defaults were chosen, and
`--part report` has others.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attribution_metrics import shares_among
from bench import joined, run_script, script_parser, show_table

from carv_3d.attribution import FeatureMaker, GradientModel
from carv_3d.attribution.ahead import shipped_scorer
from carv_3d.attribution.asking import Asked
from carv_3d.attribution.command import METHODS, TOP, AttributeOptions
from carv_3d.attribution.encoded import encoder_fingerprints
from carv_3d.attribution.queries import Query, prompt_query, run_query
from carv_3d.attribution.ranking import rank_query
from carv_3d.attribution.scoring import Scorer
from carv_3d.attribution.shipped import DrawnImages, ShippedRows, key, load
from carv_3d.errors import CarvError
from carv_3d.io.files import slug
from carv_3d.io.tables import csv_text
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.tiny.dataset import object_colors
from carv_3d.tiny.vocabulary import OBJECTS

HEAD = [
    "method", "ridge", "queries", "images", "same object", "by chance", "same color", "color by chance",
    "differ from chance", "probability of the top 20", "rounds", "CPU seconds a query",
]  # fmt: skip
VALIDATION = 24


def combinations(part: str, count: int) -> list[tuple[str, str]]:
    """`count` of a part's (object, color)."""
    every = sorted((obj, color) for obj, colors in object_colors().items() for color in colors)
    validation = random.Random(1234).sample(every, VALIDATION)
    if part == "validation":
        return validation[:count]
    return random.Random(777).sample([pair for pair in every if pair not in set(validation)], count)


def prompts(teacher: StableDiffusionTeacher, part: str, count: int) -> list[tuple[Query, str, str]]:
    """(query, object, color)."""
    return [
        (prompt_query(f"a {color} {OBJECTS[obj][0]}", teacher, 4, 0), obj, color)
        for obj, color in combinations(part, count)
    ]


def left_out_images(index: Any, count: int) -> list[tuple[Query, str, str]]:
    """The same of training images that are not in the index."""
    images = DrawnImages(np.setdiff1d(np.arange(int(index.max()) + 1, 30_000), index))
    chosen = random.Random(5).sample(range(len(images)), count)
    labels = [images.labels(i) for i in chosen]
    queries = [Query(images.caption(i), images.caption(i), [images.image(i)], [images.caption(i)]) for i in chosen]
    return [(query, x["object"], x["color"]) for query, x in zip(queries, labels)]


def assets(teacher: StableDiffusionTeacher, part: str, count: int, runs: Path) -> list[tuple[Query, str, str]]:
    """The same of four views each of the assets of a part's prompts."""
    queries = []
    for obj, color in combinations(part, count):
        prompt = f"a {color} {OBJECTS[obj][0]}"
        folder = runs / slug(prompt)
        if not (folder / "checkpoint").exists():
            subprocess.run([sys.executable, "-m", "carv_3d", "generate", prompt, "--out", str(folder)], check=True)
        queries.append((run_query(folder, teacher, 4), obj, color))
    return queries


def ask(
    queries: list[tuple[Query, str, str]], teacher: Any, maker: FeatureMaker, shipped: ShippedRows
) -> tuple[list[torch.Tensor], float, float]:
    """The gradients (1, H, d) of each query, the mean rounds, and the mean CPU seconds."""
    options = AttributeOptions(query="a red mug")
    scorer, rounds, features, begin = shipped_scorer(options.method, shipped), 0, [], time.process_time()
    for n, (query, _, _) in enumerate(queries):
        asked = Asked(query, teacher, maker.model, options, maker)
        features.append(asked.until_stable(scorer).mean(0, keepdim=True))
        rounds += asked.rounds
        print(f"{n + 1} of {len(queries)}: {query.title}, {asked.rounds} rounds", flush=True)
    return features, rounds / len(queries), (time.process_time() - begin) / len(queries)


def row(scorer: Scorer, features: list[torch.Tensor], queries: list[tuple[Query, str, str]], labels: Any) -> list[Any]:
    """The means over queries."""
    objects, colors = labels
    table = []
    for query, (_, obj, color) in zip(features, queries):
        scores = scorer(query)
        ranking, top = rank_query(scorer, query, scorer.items, scores, TOP), scores.top(0, TOP)
        shares = (*shares_among(objects, obj, top), *shares_among(colors, color, top))
        table.append([*shares, float(ranking.differs_from_chance), float(ranking.probabilities[top].mean())])
    return [f"{x:.3f}" for x in torch.tensor(table, dtype=torch.float64).mean(0).tolist()]


def measure(o: argparse.Namespace) -> list[list[Any]]:
    """The rows of the table."""
    torch.set_num_threads(o.threads)
    teacher = StableDiffusionTeacher.load("carv-tiny")
    maker = FeatureMaker(GradientModel.from_teacher(teacher), AttributeOptions(query="a red mug").features)
    shipped = load(key(maker, encoder_fingerprints(teacher)), path=o.rows) if o.rows else load(
        key(maker, encoder_fingerprints(teacher)))  # fmt: skip
    if isinstance(shipped, str):
        raise CarvError(shipped)
    images = DrawnImages(shipped.index)
    shown = [images.labels(i) for i in range(len(images))]
    labels = [x["object"] for x in shown], [x["color"] for x in shown]
    if o.kind == "images":
        queries = left_out_images(shipped.index, o.queries)
    elif o.kind == "assets":
        queries = assets(teacher, o.part, o.queries, o.runs)
    else:
        queries = prompts(teacher, o.part, o.queries)
    features, rounds, seconds = ask(queries, teacher, maker, shipped)
    table = []
    for method in o.methods:
        for ridge in o.ridges if method != "cosine" else [shipped.ridge]:
            scorer = shipped_scorer(method, replace(shipped, ridge=float(ridge)))
            figures = row(scorer, features, queries, labels)
            named = "" if method == "cosine" else ridge
            table.append([method, named, len(queries), len(images), *figures, f"{rounds:.2f}", f"{seconds:.1f}"])
            print(csv_text(HEAD, table[-1:]), flush=True)
    return table


def main() -> None:
    """The table of all methods."""
    parser = script_parser(__doc__, queries=40, threads=2)
    parser.add_argument("--part", choices=["validation", "report"], default="report")
    parser.add_argument("--kind", choices=["prompts", "images", "assets"], default="prompts")
    parser.add_argument("--runs", type=Path, default=Path("outputs/attributed"), help="of --kind assets")
    parser.add_argument("--methods", type=joined(METHODS), default=["d-trak-relatif", "d-trak", "cosine"])
    parser.add_argument("--ridges", type=joined(), default=["0.3", "1", "3"])
    parser.add_argument("--rows", type=Path, help="a file as attribution_store.py makes it, in place of the package's")
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    show_table(HEAD, measure(o), o.out)


if __name__ == "__main__":
    run_script(main)
