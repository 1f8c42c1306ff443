"""Does carv-tiny draw what it is asked for? What the classifier names in samples of 30 DDIM steps.

For training combinations and held-out ones, and, as the most that the classifier can name, for true renders of the
same prompts.

    ./install.sh python benchmarks/teacher.py [--model FOLDER] [--samples 400] [--scale 3.5] [--sheet samples.png]
"""

from __future__ import annotations

import random
from pathlib import Path

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
from bench import script_parser
from torch import Tensor

from carv_3d.guidance.sampling import prompt_images
from carv_3d.io.images import contact_sheet, to_uint8, write_png
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.tiny.classifier import WEIGHTS, Classifier


def row(title: str, classifier: Classifier, images: Tensor, targets: list[Target]) -> None:
    predicted = predict(classifier, images)
    shares = {**agreement(predicted, targets), **view_errors(predicted, targets)}
    print(f"| {title} | {len(targets)} | " + " | ".join(f"{v:.1%}" for v in shares.values()) + " |", flush=True)


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--model", default="carv-tiny")
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--scale", type=float, default=3.5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--classifier", type=Path, default=WEIGHTS)
    parser.add_argument("--no-classifier", action="store_true")
    options = parser.parse_args()
    teacher, rng = StableDiffusionTeacher.load(options.model), random.Random(0)
    classifier = None if options.no_classifier else Classifier.load(options.classifier)
    print(
        "| combinations | n | object | color | both | view (of nine) | of the eight sides: " + " | ".join(SIDES) + " |"
    )
    print("|---|---|---|---|---|---|" + "---|" * len(SIDES))
    for title in ("training", "held-out"):
        targets = draw_targets(combinations(title == "held-out"), options.samples, rng)
        prompts = target_prompts(targets)
        batches = [prompts[i : i + 50] for i in range(0, len(prompts), 50)]
        made = [prompt_images(teacher, b, options.scale, options.steps, i) for i, b in enumerate(batches)]
        images = torch.cat(made).permute(0, 3, 1, 2)
        if options.sheet and title == "training":
            write_png(options.sheet, contact_sheet(to_uint8(images[:50].permute(0, 2, 3, 1)), 10, gap=0))
            print("\n".join(prompts[:50]))
        if classifier is not None:
            row(title, classifier, images, targets)
            row(f"{title}, true renders", classifier, true_renders(targets, rng), targets)


if __name__ == "__main__":
    main()
