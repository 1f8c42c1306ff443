"""Are the assets what was asked for? One prompt per object and seed, colors at random, against the true shapes.

    ./install.sh python benchmarks/assets.py [--combinations training|held-out] [--seeds 2] [--first-seed 0]
                                                 [--work DIR] [KEY=VALUE ...]

16 views of each (8 azimuths at elevations 5 and 30). "Nearest": of all forty true shapes in that color, the one with
the best PSNR is the one asked for. IoU: of the silhouettes, in the pose as it came. The classifier has no part in
the runs. Done runs are kept in --work and not repeated; KEY=VALUE changes the configuration, as in `carv generate`.
Figures: assets.csv in a folder there; sheet.png has the front of each asset above that of its true shape.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch
from bench import joined, script_parser
from rich.progress import track

from carv_3d.evaluation.truth import iou, psnr, scoring_views, true_views
from carv_3d.generate.config import Config, load_config
from carv_3d.generate.trainer import TextTo3D
from carv_3d.io.files import write_atomic
from carv_3d.io.images import contact_sheet
from carv_3d.io.structured import parse_json, read_text
from carv_3d.io.tables import csv_text
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.tiny.classifier import Classifier
from carv_3d.tiny.vocabulary import COLORS, OBJECTS, held_out_combinations

COLUMNS = 10  # of the sheet
KEPT = "runs.jsonl"  # a line for each run that is done


def jobs(combinations: str, seeds: int) -> list[tuple[str, str, int]]:
    """(object, color, seed): a color at random for each object and seed, of "training" or "held-out" combinations."""
    held_out, rng, out = held_out_combinations(), random.Random(0), []
    for seed in range(seeds):
        for obj in OBJECTS:
            choices = [c for c in COLORS if ((obj, c) in held_out) == (combinations == "held-out")]
            out.append((obj, rng.choice(choices), seed))
    return out


def true_shapes(color: str, config: Config, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Every object in that color: ``rgb (40, 16, 64, 64, 3)`` and ``alpha (40, 16, 64, 64)``, uint8, kept on disk."""
    path = folder / f"true-{color}.npz"
    if not path.exists():
        rgb, alpha = true_views(list(OBJECTS), color, config.data)
        part = path.with_suffix(f".{multiprocessing.current_process().pid}.npz")
        np.savez(part, rgb=rgb, alpha=alpha)
        part.replace(path)
    stored = np.load(path)
    return stored["rgb"], stored["alpha"]


def all_steps(host: TextTo3D, after: Callable[[], None] = lambda: None) -> None:
    """All steps of a run; `after` is called behind each."""
    while host.step < host.config.trainer.max_steps:
        host.train_step()
        after()


def measure(
    obj: str, color: str, seed: int, overrides: list[str], folder: Path, train: Callable[[TextTo3D], None] = all_steps
) -> dict[str, Any]:
    """One run, done by `train`, and its figures."""
    config = load_config(overrides=[*overrides, f"seed={seed}"], prompt=f"a {color} {OBJECTS[obj][0]}")
    truth, silhouettes = true_shapes(color, config, folder)
    host = TextTo3D(config, teacher(config.system.guidance.pretrained_model_name_or_path))
    before = scoring_views(host)[0].numpy()
    begin = time.perf_counter()
    train(host)
    seconds = time.perf_counter() - begin
    images, opacity = scoring_views(host)
    own = list(OBJECTS).index(obj)
    distances = [psnr(images.numpy(), t / 255.0) for t in truth]
    solid, true_solid = opacity.numpy() > 0.5, silhouettes[own] > 127
    logits = Classifier.load()(images.permute(0, 3, 1, 2))
    right = (logits["object"].argmax(1) == own) & (logits["color"].argmax(1) == list(COLORS).index(color))
    rows = [np.concatenate(list(x[0:8:2]), 1) for x in (images.numpy(), truth[own] / 255.0)]
    tiles = np.concatenate(rows, 0)  # four sides of the asset, and below them of the true shape
    iio.imwrite(folder / f"{obj}-{color}-{seed}.png", (tiles.clip(0, 1) * 255).astype(np.uint8))
    return {
        "object": obj, "color": color, "seed": seed, "seconds": seconds, "psnr": distances[own],
        "gain": distances[own] - psnr(before, truth[own] / 255.0), "nearest": list(OBJECTS)[int(np.argmax(distances))],
        "iou": iou(solid, true_solid),
        "classifier": right.float().mean().item(),
        "classifier_object": (logits["object"].argmax(1) == own).float().mean().item(),
    }  # fmt: skip


_teachers: dict[str, StableDiffusionTeacher] = {}


def teacher(name: str) -> StableDiffusionTeacher:
    if name not in _teachers:
        _teachers[name] = StableDiffusionTeacher.load(name)
    return _teachers[name]


def work(job: tuple[Any, ...]) -> dict[str, Any]:
    """One run in a process of its own, whose figures are kept; `job` has the arguments of `measure`."""
    torch.set_num_threads(1)
    obj, color, seed, overrides, folder, *train = job
    row = measure(obj, color, seed, overrides, folder, *train)
    with (folder / KEPT).open("a") as handle:
        handle.write(json.dumps(row) + "\n")
    return row


def kept(folder: Path) -> list[dict[str, Any]]:
    """The figures of the runs that are done."""
    path = folder / KEPT
    lines = read_text(path).splitlines() if path.exists() else []
    return [parse_json(line, f"line {number} of {path}") for number, line in enumerate(lines, 1)]


def front(tiles: np.ndarray) -> np.ndarray:
    """The front of an asset above that of its true shape (2 S, S, 3), of the images that `measure` wrote."""
    return tiles[:, : tiles.shape[0] // 2]


def table(title: str, rows: list[dict[str, Any]]) -> str:
    """The figures over ``rows``, as one row of the table."""
    each = {
        k: np.array([r[k] for r in rows]) for k in ("psnr", "gain", "iou", "classifier", "classifier_object", "seconds")
    }
    nearest = np.mean([r["nearest"] == r["object"] for r in rows])
    gains: dict[str, list[float]] = {}
    for r in rows:
        gains.setdefault(r["object"], []).append(r["gain"])
    gained = np.mean([np.mean(g) >= 4 for g in gains.values()])
    return (
        f"| {title} | {len(rows)} | {nearest:.1%} | {each['psnr'].mean():.1f} dB | {gained:.0%} | "
        f"{each['iou'].mean():.2f} ({each['iou'].min():.2f}) | {each['classifier'].mean():.1%} | "
        f"{each['classifier_object'].mean():.1%} | {np.median(each['seconds']):.0f} s |"
    )


def main() -> None:
    parser = script_parser(__doc__)
    words = ("training", "held-out")
    parser.add_argument("--combinations", choices=words, default="training", help="of objects and colors")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0, help="leave out the seeds before this one")
    parser.add_argument("--objects", type=joined(OBJECTS), default=list(OBJECTS), help="only these")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--work", type=Path, default=Path("outputs/assets"))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args()
    key = hashlib.sha256(repr(sorted(options.overrides)).encode()).hexdigest()[:8]
    folder = options.work / (key if options.overrides else "defaults")
    folder.mkdir(parents=True, exist_ok=True)
    last = options.first_seed + options.seeds
    targets = [j for j in jobs(options.combinations, last) if j[0] in options.objects and j[2] >= options.first_seed]
    finished = {(r["object"], r["color"], r["seed"]): r for r in kept(folder)}
    left = [(*j, options.overrides, folder) for j in targets if j not in finished]
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        for r in track(pool.imap_unordered(work, left), total=len(left), description="assets"):
            finished[r["object"], r["color"], r["seed"]] = r
    rows = [finished[j] for j in targets]
    columns = list(rows[0])
    write_atomic(folder / "assets.csv", csv_text(columns, ([r[c] for c in columns] for r in rows)))
    fronts = [front(iio.imread(folder / f"{obj}-{color}-{seed}.png")) for obj, color, seed in targets]
    iio.imwrite(folder / "sheet.png", contact_sheet(np.stack(fronts), COLUMNS))
    print("\n| object | color | seed | PSNR | gain | IoU | classifier | nearest |\n|---|---|---|---|---|---|---|---|")
    for r in sorted(rows, key=lambda r: r["gain"]):
        print(f"| {r['object']} | {r['color']} | {r['seed']} | {r['psnr']:.1f} | {r['gain']:.1f} | {r['iou']:.2f} "
              f"| {r['classifier']:.0%} | {r['nearest']} |")  # fmt: skip
    print("\n| combinations | runs | nearest | PSNR | objects that gain 4 dB | IoU mean (least) "
          "| classifier: object and color "
          "| classifier: object | a run |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    print(table(options.combinations, rows))


if __name__ == "__main__":
    main()
