"""Does a lower variance make a better one-step generator? One draw a sample against sixteen, with carv-tiny.

    ./install.sh python benchmarks/distill_quality.py [--methods K1,K16] [--seeds 3] [--budget 1800] [--batch 8]
        [--lr 2e-5] [--start-from RUN] [--work DIR] [KEY=VALUE ...]

All runs go interleaved, for the same seconds of their own steps, and are read at the same points: the classifier's
agreement
on fixed prompts, and the kernel distance of its features to those of true renders. The paper found no change of FID
with the variance; --batch, --lr, --start-from and further options of carv distill (KEY=VALUE) are for looking where
there might be one. Hours of work: stop it whenever you like, the same command resumes.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from agreement import combinations, draw_targets, target_prompts, true_renders
from bench import run_script, trial_options
from distill_trials import METHODS, equal_table, make_trials, origin, read_off, run_trials, start_from
from image_scores import classifier_features, one_step_images, score_images

from carv_3d.distill.loop import Distillation
from carv_3d.distill.options import DistillOptions
from carv_3d.distill.prompts import TinyCaptions
from carv_3d.distill.request import read_distill_options
from carv_3d.errors import CarvError
from carv_3d.evaluation.distances import kernel_distance
from carv_3d.runs.checkpoint import load_checkpoint
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.tiny.classifier import Classifier

FIGURES = ("agreement_both", "agreement_object", "agreement_color", "kernel_distance")


def main() -> int:
    parser = trial_options(__doc__, METHODS, budget=1800.0, points=12)
    parser.add_argument("--batch", type=int, default=DistillOptions.batch_size)
    parser.add_argument("--lr", type=float, default=DistillOptions.lr)
    parser.add_argument("--start-from", type=Path, metavar="RUN", help="a run of carv distill to start from")
    parser.add_argument("--samples", type=int, default=400, help="prompts, an image of each, the same at each reading")
    parser.add_argument("--work", type=Path, default=Path("outputs/distill-quality"))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="options of carv distill")
    o = parser.parse_args()
    if not 0 < o.budget < float("inf") or o.points < 1 or o.samples < 2:
        raise CarvError("--budget must be above 0, --points at least 1, --samples at least 2")
    base = read_distill_options([f"batch_size={o.batch}", f"lr={o.lr!r}", *o.overrides])
    start = None if o.start_from is None else load_checkpoint(o.start_from / "checkpoint")[0]
    teacher, classifier, rng = (
        StableDiffusionTeacher.load("carv-tiny", half_precision=False),
        Classifier.load(),
        random.Random(0),
    )
    targets = draw_targets(combinations(held_out=False), o.samples, rng)
    prompts = target_prompts(targets)
    real, other = (classifier_features(classifier, true_renders(targets, rng)) for _ in range(2))

    def build(options: DistillOptions) -> Distillation:
        distillation = Distillation(teacher, options, TinyCaptions())
        if start is not None:
            start_from(distillation, start)
        return distillation

    def evaluate(distillation: Distillation) -> dict[str, float]:
        images = one_step_images(distillation.averaged(), teacher, prompts)
        return score_images(classifier, images, targets, real).figures()

    made_with = f"{o.samples} prompts, {origin(start, teacher.unet, teacher.vae, teacher.text_encoder, classifier)}"
    trials = make_trials(o.work, o.methods, o.seeds, base, build, evaluate, made_with)
    run_trials(trials, [o.budget * i / o.points for i in range(o.points + 1)])
    comparison = read_off(o.work, trials, score="agreement_both")
    floor = kernel_distance(other, real, paired=True)
    print(
        f"\ncarv-tiny, batch {base.batch_size}, lr {base.lr:g}, {o.budget:g} s of training time a run, {o.seeds} "
        f"seeds, from {o.start_from or 'the teacher'}, {torch.get_num_threads()} threads, torch {torch.__version__}. "
        f"{o.samples} prompts, the classifier's features; kernel distance between true renders: {floor.text('.3g')}. "
        f"Bands: 95 % bootstrap over seeds, from five on. Curves: {o.work}/curves-*.png\n"
    )
    print(equal_table(comparison, FIGURES))
    print("\nWhat each method needs to reach the first one's final agreement on both, over what that needed:")
    for ratio in comparison.times:
        if ratio.metric == "agreement_both":
            print(f"{ratio.method}, {ratio.axis}: {ratio.text()}")
    return 0


if __name__ == "__main__":
    run_script(main)
