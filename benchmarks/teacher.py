"""Does carv-tiny draw what it is asked for? What the classifier names in samples of 30 DDIM steps.

For training combinations and held-out ones, and, as the most that the classifier can name, for true renders of the
same prompts. "Autoencoder" is the PSNR of such renders, of the model's size, decoded from their latents. --out: a CSV.
--sheets: a folder for NAME.png, the first 50 samples of each model.

    ./install.sh python benchmarks/teacher.py [--models carv-tiny,carv-tiny-128] [--samples 400] [--scale 3.5]
                                              [--out FILE] [--sheets FOLDER]
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from agreement import (
    SIDES,
    Target,
    agreement,
    combinations,
    draw_targets,
    predict,
    target_prompts,
    true_renders,
    view_errors,
)
from bench import joined, run_script, script_parser
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.evaluation.truth import psnr
from carv_3d.guidance.sampling import prompt_images
from carv_3d.io.files import make_folder, slug, write_atomic
from carv_3d.io.images import contact_sheet, to_uint8, write_png
from carv_3d.io.tables import csv_text
from carv_3d.teachers.availability import resolve_model
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.tiny.classifier import Classifier

SHARES = ("object", "color", "both", "view", *SIDES)
COLUMNS = ("combinations", "model", "samples", "autoencoder", *SHARES)
RENDERS = "true renders"  # in place of a model
BATCH, SHOWN = 50, 50


def row(
    combined: str, model: str, predicted: dict[str, Tensor], targets: list[Target], autoencoder: float | None = None
) -> dict[str, Any]:
    """The shares of `predict` over images of the targets, by COLUMNS."""
    shares = {**agreement(predicted, targets), **view_errors(predicted, targets)}
    return {"combinations": combined, "model": model, "samples": len(targets), "autoencoder": autoencoder, **shares}


def line(cells: dict[str, Any]) -> str:
    """A row of the table."""
    shares = " | ".join(f"{100 * float(cells[name]):.1f}%" for name in SHARES)
    decibel = "—" if cells["autoencoder"] in ("", None) else f"{float(cells['autoencoder']):.1f} dB"
    return f"| {cells['combinations']} | {cells['model']} | {decibel} | {shares} |"


@torch.no_grad()
def autoencoder_psnr(teacher: StableDiffusionTeacher, targets: list[Target]) -> float:
    """Of true renders of the targets, of the model's size, decoded from their latents; in dB."""
    images = true_renders(targets, random.Random(1), teacher.image_size)
    decoded = [
        teacher.decode(teacher.encode(part.to(teacher.device), sample=False)).cpu() for part in images.split(BATCH)
    ]
    return psnr(torch.cat(decoded).numpy(), images.numpy())


def main() -> int:
    parser = script_parser(__doc__)
    parser.add_argument("--models", type=joined(), default=["carv-tiny"], help="names or folders")
    parser.add_argument("--samples", type=int, default=400, help="of each kind of combinations")
    parser.add_argument("--scale", type=float, default=3.5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sheets", type=Path)
    o = parser.parse_args()
    if o.samples < 2 or "" in o.models or len({*o.models}) < len(o.models):
        raise CarvError("--samples must be at least 2, and --models names joined by commas, each once")
    for name in o.models:  # a wrong one ends it before anything is measured
        resolve_model(name)
    classifier, rng, rows, asked = Classifier.load(), random.Random(0), [], {}
    for combined in ("training", "held-out"):
        targets = asked[combined] = draw_targets(combinations(combined == "held-out"), o.samples, rng)
        rows.append(row(combined, RENDERS, predict(classifier, true_renders(targets, rng)), targets))
    for name in o.models:
        teacher = StableDiffusionTeacher.load(name)
        for combined, targets in asked.items():
            prompts = target_prompts(targets)
            batches = [prompts[i : i + BATCH] for i in range(0, len(prompts), BATCH)]
            parts = [prompt_images(teacher, part, o.scale, o.steps, seed) for seed, part in enumerate(batches)]
            images = torch.cat(parts)
            predicted = predict(classifier, images.permute(0, 3, 1, 2))
            rows.append(row(combined, name, predicted, targets, autoencoder_psnr(teacher, targets)))
            print(line(rows[-1]), flush=True)
            if o.sheets and combined == "training":
                make_folder(o.sheets)
                write_png(o.sheets / f"{slug(name)}.png", contact_sheet(to_uint8(images[:SHOWN]), 10, gap=0))
    print(f"\n| combinations | model | autoencoder | {' | '.join(SHARES)} |\n|{'---|' * (3 + len(SHARES))}")
    print("\n".join(map(line, rows)))
    if o.out:
        write_atomic(o.out, csv_text(COLUMNS, ([cells[name] for name in COLUMNS] for cells in rows)))
    return 0


if __name__ == "__main__":
    run_script(main)
