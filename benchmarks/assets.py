"""Are the assets what was asked for? One prompt per object and seed, colours at random, against the true shapes.

    ./install.sh python benchmarks/assets.py [--pairs seen|unseen] [--seeds 2] [--first-seed 0]
                                                 [--work DIR] [KEY=VALUE ...]

16 views of each (8 azimuths at elevations 5 and 30). "Nearest": of all forty true shapes in that colour, the one with
the best PSNR is the one asked for. IoU: of the silhouettes, in the pose as it came. The judge saw none of the runs.
Done runs are kept in --work and not repeated; KEY=VALUE changes the configuration, as in `carv generate`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch
from rich.progress import track

from carv_3d.evaluation.truth import iou, psnr, scoring_views, true_views
from carv_3d.generate.config import Config, load_config
from carv_3d.generate.trainer import TextTo3D
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.tiny.classifier import Judge
from carv_3d.tiny.vocabulary import COLOURS, OBJECTS, unseen_pairs


def jobs(pairs: str, seeds: int) -> list[tuple[str, str, int]]:
    """(object, colour, seed): a colour at random for each object and seed, among the pairs that training showed or,
    for "unseen", among those it did not."""
    unseen, rng, out = unseen_pairs(), random.Random(0), []
    for seed in range(seeds):
        for obj in OBJECTS:
            choices = [c for c in COLOURS if ((obj, c) in unseen) == (pairs == "unseen")]
            out.append((obj, rng.choice(choices), seed))
    return out


def true_shapes(colour: str, config: Config, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Every object in that colour: ``rgb (40, 16, 64, 64, 3)`` and ``alpha (40, 16, 64, 64)``, uint8, kept on disk."""
    path = folder / f"true-{colour}.npz"
    if not path.exists():
        rgb, alpha = true_views(list(OBJECTS), colour, config.data)
        part = path.with_suffix(f".{multiprocessing.current_process().pid}.npz")
        np.savez(part, rgb=rgb, alpha=alpha)
        part.replace(path)
    found = np.load(path)
    return found["rgb"], found["alpha"]


def measure(obj: str, colour: str, seed: int, overrides: list[str], folder: Path) -> dict[str, Any]:
    """One run and what it came to."""
    config = load_config(overrides=[*overrides, f"seed={seed}"], prompt=f"a {colour} {OBJECTS[obj][0]}")
    truth, silhouettes = true_shapes(colour, config, folder)
    host = TextTo3D(config, teacher(config.system.guidance.pretrained_model_name_or_path))
    before = scoring_views(host)[0].numpy()
    begin = time.perf_counter()
    while host.step < config.trainer.max_steps:
        host.train_step()
    seconds = time.perf_counter() - begin
    pictures, opacity = scoring_views(host)
    own = list(OBJECTS).index(obj)
    distances = [psnr(pictures.numpy(), t / 255.0) for t in truth]
    solid, true_solid = opacity.numpy() > 0.5, silhouettes[own] > 127
    logits = Judge.load()(pictures.permute(0, 3, 1, 2))
    right = (logits["object"].argmax(1) == own) & (logits["colour"].argmax(1) == list(COLOURS).index(colour))
    rows = [np.concatenate(list(x[0:8:2]), 1) for x in (pictures.numpy(), truth[own] / 255.0)]
    tiles = np.concatenate(rows, 0)  # four sides of the asset, and below them of the true shape
    iio.imwrite(folder / f"{obj}-{colour}-{seed}.png", (tiles.clip(0, 1) * 255).astype(np.uint8))
    return {
        "object": obj, "colour": colour, "seed": seed, "seconds": seconds, "psnr": distances[own],
        "gain": distances[own] - psnr(before, truth[own] / 255.0), "nearest": list(OBJECTS)[int(np.argmax(distances))],
        "iou": iou(solid, true_solid),
        "judge": right.float().mean().item(),
        "judge_object": (logits["object"].argmax(1) == own).float().mean().item(),
    }  # fmt: skip


_teachers: dict[str, StableDiffusionTeacher] = {}


def teacher(name: str) -> StableDiffusionTeacher:
    if name not in _teachers:
        _teachers[name] = StableDiffusionTeacher.load(name)
    return _teachers[name]


def work(job: tuple[str, str, int, list[str], Path]) -> dict[str, Any]:
    torch.set_num_threads(1)
    *what, overrides, folder = job
    obj, colour, seed = what
    row = measure(obj, colour, seed, overrides, folder)
    with (folder / "runs.jsonl").open("a") as handle:
        handle.write(json.dumps(row) + "\n")
    return row


def table(title: str, rows: list[dict[str, Any]]) -> str:
    """The figures over ``rows``, as one row of the table."""
    each = {k: np.array([r[k] for r in rows]) for k in ("psnr", "gain", "iou", "judge", "judge_object", "seconds")}
    nearest = np.mean([r["nearest"] == r["object"] for r in rows])
    gains: dict[str, list[float]] = {}
    for r in rows:
        gains.setdefault(r["object"], []).append(r["gain"])
    gained = np.mean([np.mean(g) >= 4 for g in gains.values()])
    return (
        f"| {title} | {len(rows)} | {nearest:.1%} | {each['psnr'].mean():.1f} dB | {gained:.0%} | "
        f"{each['iou'].mean():.2f} ({each['iou'].min():.2f}) | {each['judge'].mean():.1%} | "
        f"{each['judge_object'].mean():.1%} | {np.median(each['seconds']):.0f} s |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", choices=("seen", "unseen"), default="seen")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0, help="leave out the seeds before this one")
    parser.add_argument("--objects", nargs="*", default=list(OBJECTS), help="only these")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--work", type=Path, default=Path("outputs/assets"))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args()
    key = hashlib.sha256(repr(sorted(options.overrides)).encode()).hexdigest()[:8]
    folder = options.work / (key if options.overrides else "defaults")
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "runs.jsonl"
    done = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    last = options.first_seed + options.seeds
    wanted = [j for j in jobs(options.pairs, last) if j[0] in options.objects and j[2] >= options.first_seed]
    finished = {(r["object"], r["colour"], r["seed"]): r for r in done}
    left = [(*j, options.overrides, folder) for j in wanted if j not in finished]
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        for r in track(pool.imap_unordered(work, left), total=len(left), description="assets"):
            finished[r["object"], r["colour"], r["seed"]] = r
    rows = [finished[j] for j in wanted]
    print("\n| object | colour | seed | PSNR | gain | IoU | judge | nearest |\n|---|---|---|---|---|---|---|---|")
    for r in sorted(rows, key=lambda r: r["gain"]):
        print(f"| {r['object']} | {r['colour']} | {r['seed']} | {r['psnr']:.1f} | {r['gain']:.1f} | {r['iou']:.2f} "
              f"| {r['judge']:.0%} | {r['nearest']} |")  # fmt: skip
    print("\n| pairs | runs | nearest | PSNR | objects that gain 4 dB | IoU mean (least) | judge: object and colour "
          "| judge: object | a run |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    print(table(options.pairs, rows))


if __name__ == "__main__":
    main()
