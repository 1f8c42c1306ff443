"""Whether an image shows what was asked for: prompts for carv-tiny, and what the classifier names in their images."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from carv_3d.evaluation.scoring import at_classifier_size
from carv_3d.scenes.view_phrases import FINE_PHRASES, OVERHEAD
from carv_3d.tiny.classifier import VIEWS, Classifier
from carv_3d.tiny.vocabulary import COLORS, OBJECTS, held_out_combinations

SIDES = ("as asked", "neighbor", "mirror image", "opposite", "another side", "overhead")
Target = tuple[str, str, str]  # object, color, view


def combinations(held_out: bool) -> list[tuple[str, str]]:
    """The object-color combinations of the training, or those held out from it."""
    left_out = held_out_combinations()
    return sorted(left_out) if held_out else [(o, c) for o in OBJECTS for c in COLORS if (o, c) not in left_out]


def draw_targets(choices: Sequence[tuple[str, str]], count: int, rng: random.Random) -> list[Target]:
    """`count` combinations at random, each with a view at random."""
    return [(*choices[i % len(choices)], rng.choice(VIEWS)) for i in rng.sample(range(10**6), count)]


def target_prompts(targets: Iterable[Target]) -> list[str]:
    """The prompt for each target: "a red mug, front view"."""
    return [f"a {color} {OBJECTS[obj][0]}, {view}" for obj, color, view in targets]


def true_renders(targets: Sequence[Target], rng: random.Random, size: int = 64) -> Tensor:
    """Images (N, 3, size, size) in [0, 1] of the targets, each from a random camera within its view."""
    from carv_3d.tiny.render import DISTANCE, FOVY, Shot, render

    shots = []
    for obj, color, view in targets:
        overhead = view == OVERHEAD
        elevation = rng.uniform(60, 90) if overhead else rng.uniform(-10, 45)
        azimuth = rng.uniform(0, 360) if overhead else 45 * VIEWS.index(view) + rng.uniform(-22.5, 22.5)
        shots.append(Shot(obj, color, "plain", elevation, azimuth, rng.uniform(*DISTANCE), rng.uniform(*FOVY)))
    return torch.from_numpy(render(shots, size)[0]).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def predict(classifier: Classifier, images: Tensor, batch: int = 256) -> dict[str, Tensor]:
    """The classifier's most probable classes.

    Args:
        classifier: on the CPU.
        images: (N, 3, H, W) in [0, 1], of any size.
        batch: images at a time.

    Returns:
        "object", "color" and "view", each (N,) indices into OBJECTS, COLORS and VIEWS.
    """
    parts = [classifier(at_classifier_size(part)) for part in images.split(batch)]
    return {name: torch.cat([part[name].argmax(1) for part in parts]).cpu() for name in ("object", "color", "view")}


def correct(predicted: dict[str, Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
    """Whether each prediction of `predict` is its target's: "object", "color", "both" and "view", each (N,) bool."""
    classes = (list(OBJECTS), list(COLORS), list(VIEWS))
    right = {
        name: predicted[name] == torch.tensor([classes[i].index(target[i]) for target in targets])
        for i, name in enumerate(("object", "color", "view"))
    }
    return {**right, "both": right["object"] & right["color"]}


def agreement(predicted: dict[str, Tensor], targets: Sequence[Target]) -> dict[str, float]:
    """Shares of images whose predicted object, color, both, and view are the target's.

    The view counts where the image can show it: a round object has no front.
    """
    right = correct(predicted, targets)
    right["view"] = right["view"][_shows_view(targets)]
    return {name: right[name].float().mean().item() for name in ("object", "color", "both", "view")}


def view_errors(predicted: dict[str, Tensor], targets: Sequence[Target]) -> dict[str, float]:
    """How the predicted views lie to the targets', as shares over the targets of one of the eight sides.

    Returns:
        The share of each of SIDES: the side itself, one next to it, its mirror image otherwise (the left for the
        right), the opposite otherwise (the back for the front), another side, or from above. Round objects are left
        out.
    """
    counts = dict.fromkeys(SIDES, 0)
    for view, (_, _, asked), shown in zip(predicted["view"].tolist(), targets, _shows_view(targets).tolist()):
        if not shown or asked == OVERHEAD:
            continue
        own = FINE_PHRASES.index(asked)
        turned = (view - own) % 8
        counts[
            "overhead" if view == VIEWS.index(OVERHEAD)
            else "as asked" if turned == 0
            else "neighbor" if turned in (1, 7)
            else "mirror image" if view == -own % 8
            else "opposite" if turned == 4
            else "another side"
        ] += 1  # fmt: skip
    return {side: n / max(sum(counts.values()), 1) for side, n in counts.items()}


def _shows_view(targets: Sequence[Target]) -> Tensor:
    """(N,) bool: whether an image of the target can show its view."""
    from carv_3d.tiny.objects import ROUND

    return torch.tensor([obj not in ROUND or view == OVERHEAD for obj, _, view in targets])
