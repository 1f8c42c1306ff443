"""Does a picture show what was asked for? Prompts of carv-tiny with what they ask, and the judge's word on pictures."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from carv_3d.scenes.view_phrases import FINE_PHRASES, OVERHEAD
from carv_3d.tiny.classifier import VIEWS, Judge
from carv_3d.tiny.vocabulary import COLOURS, OBJECTS, unseen_pairs

SIDES = ("as asked", "neighbour", "mirror image", "opposite", "another side", "overhead")
Wanted = tuple[str, str, str]  # object, colour, view


def pairs(seen: bool) -> list[tuple[str, str]]:
    """The object–colour pairs that training showed, or those that it never did."""
    unseen = unseen_pairs()
    return [(o, c) for o in OBJECTS for c in COLOURS if (o, c) not in unseen] if seen else sorted(unseen)


def draw_wanted(of: Sequence[tuple[str, str]], count: int, rng: random.Random) -> list[Wanted]:
    """`count` things to ask for: pairs at random, each from a view at random."""
    return [(*of[i % len(of)], rng.choice(VIEWS)) for i in rng.sample(range(10**6), count)]


def prompts_of(wanted: Iterable[Wanted]) -> list[str]:
    """The prompt for each: "a red mug, front view"."""
    return [f"a {colour} {OBJECTS[obj][0]}, {view}" for obj, colour, view in wanted]


def true_renders(wanted: Sequence[Wanted], rng: random.Random) -> Tensor:
    """Pictures (N, 3, 64, 64) in [0, 1] of what was asked for, from anywhere within the side that was asked for."""
    from carv_3d.tiny.render import DISTANCE, FOVY, Shot, render

    shots = []
    for obj, colour, view in wanted:
        overhead = view == OVERHEAD
        elevation = rng.uniform(60, 90) if overhead else rng.uniform(-10, 45)
        azimuth = rng.uniform(0, 360) if overhead else 45 * VIEWS.index(view) + rng.uniform(-22.5, 22.5)
        shots.append(Shot(obj, colour, "plain", elevation, azimuth, rng.uniform(*DISTANCE), rng.uniform(*FOVY)))
    return torch.from_numpy(render(shots)[0]).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def named(judge: Judge, pictures: Tensor, batch: int = 256) -> dict[str, Tensor]:
    """What the judge names in pictures (N, 3, 64, 64) in [0, 1]: "object", "colour" and "view", each (N,) long, numbers
    of OBJECTS, COLOURS and VIEWS in their order."""
    parts = [judge(part) for part in pictures.split(batch)]
    return {name: torch.cat([part[name].argmax(1) for part in parts]).cpu() for name in ("object", "colour", "view")}


def verdicts(told: dict[str, Tensor], wanted: Sequence[Wanted]) -> dict[str, Tensor]:
    """Whether the judge names what was asked for: "object", "colour", "both", "view" (one of nine), each (N,) bool.

    told: what it names in a picture of each of N `wanted`, see `named`.
    """
    classes = (list(OBJECTS), list(COLOURS), list(VIEWS))
    right = {
        name: told[name] == torch.tensor([classes[i].index(one[i]) for one in wanted])
        for i, name in enumerate(("object", "colour", "view"))
    }
    return {**right, "both": right["object"] & right["colour"]}


def agreement(told: dict[str, Tensor], wanted: Sequence[Wanted]) -> dict[str, float]:
    """Shares of pictures in which the judge names object, colour, both, and view as they were asked for; the view
    where the object has a front to tell. Arguments as of `verdicts`."""
    found = verdicts(told, wanted)
    found["view"] = found["view"][_tells(wanted)]
    return {name: found[name].float().mean().item() for name in ("object", "colour", "both", "view")}


def sides_named(told: dict[str, Tensor], wanted: Sequence[Wanted]) -> dict[str, float]:
    """Where the views go: of the pictures of an object with a front that were asked for from one of the eight sides,
    the share in which the judge names that side ("as asked"), a neighbour of it, its mirror image otherwise (the left
    for the right), the opposite otherwise (the back for the front), another side, or "overhead". Arguments as of
    `verdicts`."""
    counts = dict.fromkeys(SIDES, 0)
    for view, (_, _, asked), tells in zip(told["view"].tolist(), wanted, _tells(wanted).tolist()):
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


def _tells(wanted: Sequence[Wanted]) -> Tensor:
    """(N,) bool: whether the picture of each can show where it was asked for from."""
    from carv_3d.tiny.objects import ROUND

    return torch.tensor([obj not in ROUND or view == OVERHEAD for obj, _, view in wanted])
