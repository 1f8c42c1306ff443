"""Does an image show what was asked for? Prompts of carv-tiny with what they ask, and the classifier's word on
images."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from carv_3d.scenes.view_phrases import FINE_PHRASES, OVERHEAD
from carv_3d.tiny.classifier import VIEWS, Classifier
from carv_3d.tiny.vocabulary import COLORS, OBJECTS, held_out_combinations

SIDES = ("as asked", "neighbour", "mirror image", "opposite", "another side", "overhead")
Target = tuple[str, str, str]  # object, color, view


def pairs(seen: bool) -> list[tuple[str, str]]:
    """The object–color pairs that training showed, or those that it never did."""
    unseen = held_out_combinations()
    return [(o, c) for o in OBJECTS for c in COLORS if (o, c) not in unseen] if seen else sorted(unseen)


def draw_targets(of: Sequence[tuple[str, str]], count: int, rng: random.Random) -> list[Target]:
    """`count` things to ask for: pairs at random, each from a view at random."""
    return [(*of[i % len(of)], rng.choice(VIEWS)) for i in rng.sample(range(10**6), count)]


def target_prompts(targets: Iterable[Target]) -> list[str]:
    """The prompt for each: "a red mug, front view"."""
    return [f"a {color} {OBJECTS[obj][0]}, {view}" for obj, color, view in targets]


def true_renders(targets: Sequence[Target], rng: random.Random) -> Tensor:
    """Images (N, 3, 64, 64) in [0, 1] of what was asked for, from anywhere within the side that was asked for."""
    from carv_3d.tiny.render import DISTANCE, FOVY, Shot, render

    shots = []
    for obj, color, view in targets:
        overhead = view == OVERHEAD
        elevation = rng.uniform(60, 90) if overhead else rng.uniform(-10, 45)
        azimuth = rng.uniform(0, 360) if overhead else 45 * VIEWS.index(view) + rng.uniform(-22.5, 22.5)
        shots.append(Shot(obj, color, "plain", elevation, azimuth, rng.uniform(*DISTANCE), rng.uniform(*FOVY)))
    return torch.from_numpy(render(shots)[0]).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def named(classifier: Classifier, images: Tensor, batch: int = 256) -> dict[str, Tensor]:
    """What the classifier names in images (N, 3, 64, 64) in [0, 1]: "object", "color" and "view", each (N,) long,
    numbers of OBJECTS, COLORS and VIEWS in their order."""
    parts = [classifier(part) for part in images.split(batch)]
    return {name: torch.cat([part[name].argmax(1) for part in parts]).cpu() for name in ("object", "color", "view")}


def correct(told: dict[str, Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
    """Whether the classifier names what was asked for: "object", "color", "both", "view" (one of nine), each (N,) bool.

    told: what it names in an image of each of N `targets`, see `named`.
    """
    classes = (list(OBJECTS), list(COLORS), list(VIEWS))
    right = {
        name: told[name] == torch.tensor([classes[i].index(one[i]) for one in targets])
        for i, name in enumerate(("object", "color", "view"))
    }
    return {**right, "both": right["object"] & right["color"]}


def agreement(told: dict[str, Tensor], targets: Sequence[Target]) -> dict[str, float]:
    """Shares of images in which the classifier names object, color, both, and view as they were asked for; the view
    where the object has a front to tell. Arguments as of `correct`."""
    found = correct(told, targets)
    found["view"] = found["view"][_tells(targets)]
    return {name: found[name].float().mean().item() for name in ("object", "color", "both", "view")}


def sides_named(told: dict[str, Tensor], targets: Sequence[Target]) -> dict[str, float]:
    """Where the views go: of the images of an object with a front that were asked for from one of the eight sides,
    the share in which the classifier names that side ("as asked"), a neighbour of it, its mirror image otherwise
    (the left
    for the right), the opposite otherwise (the back for the front), another side, or "overhead". Arguments as of
    `correct`."""
    counts = dict.fromkeys(SIDES, 0)
    for view, (_, _, asked), tells in zip(told["view"].tolist(), targets, _tells(targets).tolist()):
        if not tells or asked == OVERHEAD:
            continue
        own = FINE_PHRASES.index(asked)
        turned = (view - own) % 8
        counts[
            "overhead" if view == VIEWS.index(OVERHEAD)
            else "as asked" if turned == 0
            else "neighbour" if turned in (1, 7)
            else "mirror image" if view == -own % 8
            else "opposite" if turned == 4
            else "another side"
        ] += 1  # fmt: skip
    return {side: n / max(sum(counts.values()), 1) for side, n in counts.items()}


def _tells(targets: Sequence[Target]) -> Tensor:
    """(N,) bool: whether the image of each can show where it was asked for from."""
    from carv_3d.tiny.objects import ROUND

    return torch.tensor([obj not in ROUND or view == OVERHEAD for obj, _, view in targets])
