"""A one-step generator against its teacher at 30 steps of DDIM with guidance: agreement with the classifier, and cost.

    ./install.sh python benchmarks/distill_one_step.py MODEL [--samples 400] [--scale 3.5] [--steps 30] [--sheet FILE]
                                                       [--out FILE]

MODEL is the folder that carv distill leaves (outputs/.../model). Both sides have the same noise and prompts,
of training combinations and of held-out ones. Distances are between the classifier's features of images and of true
renders of the same prompts, next to those of two sets of true renders: none of them is an FID. --out: a CSV.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from agreement import combinations, draw_targets, target_prompts, true_renders
from bench import run_script, script_parser
from image_scores import ImageScores, classifier_features, ddim_images, one_step_images, score_images
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.evaluation.distances import frechet_distance, kernel_distance
from carv_3d.io.files import write_atomic
from carv_3d.io.images import preview_sheet
from carv_3d.io.tables import csv_text
from carv_3d.stats.bootstrap import Interval
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.tiny.classifier import Classifier

HEAD = "| images | n | NFE each | s each | object | color | both | over the teacher's | kernel | Fréchet |"
COLUMNS = (
    "images", "n", "nfe", "seconds", "object", "color", "both", "over", "over_low", "over_high",
    "kernel", "kernel_low", "kernel_high", "frechet",
)  # fmt: skip


def row(
    images: str, cost: tuple[float, float] | None, scores: ImageScores, teacher: ImageScores | None, reference: Tensor
) -> dict[str, Any]:
    """Figures by COLUMNS; `teacher`: the share of both is set over its. reference: features of true renders."""
    nfe, seconds = cost or (None, None)
    over = Interval(math.nan) if teacher is None else scores.ratio(teacher)
    kernel, frechet = scores.kernel, frechet_distance(scores.features, reference)
    shares = (scores.object, scores.color, scores.both)
    ends = (over.value, over.low, over.high, kernel.value, kernel.low, kernel.high)
    return dict(zip(COLUMNS, (images, len(scores.features), nfe, seconds, *shares, *ends, frechet), strict=True))


def line(cells: Mapping[str, Any]) -> str:
    """A row of the table, of what `row` gives or of a line of the CSV."""
    value = {k: math.nan if v in ("", None) else float(v) for k, v in cells.items() if k != "images"}
    spent = "— | —" if math.isnan(value["nfe"]) else f"{value['nfe']:g} | {value['seconds']:.3f}"
    shares = " | ".join(f"{value[name]:.1%}" for name in ("object", "color", "both"))
    over, kernel = (Interval(*(value[f"{k}{end}"] for end in ("", "_low", "_high"))) for k in ("over", "kernel"))
    ratio = "—" if math.isnan(over.value) else over.text(".3f")
    return (
        f"| {cells['images']} | {value['n']:.0f} | {spent} | {shares} | {ratio} | {kernel.text('.3g')} "
        f"| {value['frechet']:.3g} |"
    )


@contextlib.contextmanager
def counted_nfe(unet: torch.nn.Module) -> Iterator[list[int]]:
    """Within, the list gets the samples of each evaluation of `unet`."""
    nfe: list[int] = []
    hook = unet.register_forward_pre_hook(lambda module, given: nfe.append(len(given[0])))
    try:
        yield nfe
    finally:
        hook.remove()


def timed(unet: torch.nn.Module, make: Callable[[], Tensor]) -> tuple[Tensor, tuple[float, float]]:
    """The images, and NFE and seconds (with decoding) for each."""
    begin = time.perf_counter()
    with counted_nfe(unet) as nfe:
        images = make()
    return images, (sum(nfe) / len(images), (time.perf_counter() - begin) / len(images))


def main() -> int:
    parser = script_parser(__doc__)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--teacher", default="carv-tiny")
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--scale", type=float, default=3.5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--sheet", type=Path, default=Path("outputs/one-step.png"))
    parser.add_argument("--shown", type=int, default=12, help="prompts on the sheet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    if o.samples < 2 or not 1 <= o.shown <= o.samples:
        raise CarvError("--samples must be at least 2, and --shown from 1 to that")
    generator, teacher = (StableDiffusionTeacher.load(name, half_precision=False) for name in (o.model, o.teacher))
    classifier, rng, rows, apart = Classifier.load(), random.Random(o.seed), [], []
    for title in ("training", "held-out"):
        targets = draw_targets(combinations(title == "held-out"), o.samples, rng)
        prompts = target_prompts(targets)
        renders = [true_renders(targets, rng) for _ in range(2)]
        real = classifier_features(classifier, renders[0])
        made, cost = timed(generator.unet, partial(one_step_images, generator.unet, generator, prompts, o.seed))
        teacher_images, expense = timed(teacher.unet, partial(ddim_images, teacher, prompts, o.scale, o.steps, o.seed))
        generated, best, ceiling = (
            score_images(classifier, p, targets, real) for p in (made, teacher_images, renders[1])
        )
        rows += [
            row(f"{title} combinations, one step", cost, generated, best, real),
            row(f"{title} combinations, teacher", expense, best, None, real),
            row(f"{title} combinations, true renders", None, ceiling, best, real),
        ]
        k = kernel_distance(generated.features, best.features, paired=True)
        apart.append(
            f"{title}: one step and teacher are apart by {k.text('.3g')} (kernel), "
            f"{frechet_distance(generated.features, best.features):.3g} (Fréchet)."
        )
        if title == "training":
            sides = torch.stack([made[: o.shown], teacher_images[: o.shown]], 1).flatten(0, 1)
            captions = [f"{n}: {p}" for p in prompts[: o.shown] for n in ("1 step", f"{o.steps} steps")]
            o.sheet.parent.mkdir(parents=True, exist_ok=True)
            preview_sheet(sides, o.sheet, captions, columns=6)
    threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{o.model} against {o.teacher}, {o.steps} DDIM steps at scale {o.scale:g}, {threads}\n")
    if o.out:
        write_atomic(o.out, csv_text(COLUMNS, (cells.values() for cells in rows)))
    print(
        "\n".join(
            [HEAD, "|" + "---|" * len(HEAD.split(" | ")), *map(line, rows), "", *apart, f"Side by side: {o.sheet}"]
        )
    )
    return 0


if __name__ == "__main__":
    run_script(main)
