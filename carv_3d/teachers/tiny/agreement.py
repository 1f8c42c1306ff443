"""Does a picture show what was asked for? Prompts of carv-tiny with what they ask, and the judge's word on pictures."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .judge import VIEWS, Judge
from .vocabulary import COLOURS, OBJECTS, unseen_pairs

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
    from .render import DISTANCE, FOVY, Shot, render

    shots = []
    for obj, colour, view in wanted:
        overhead = view == "overhead view"
        elevation = rng.uniform(60, 90) if overhead else rng.uniform(-10, 45)
        azimuth = rng.uniform(0, 360) if overhead else 45 * VIEWS.index(view) + rng.uniform(-22.5, 22.5)
        shots.append(Shot(obj, colour, "plain", elevation, azimuth, rng.uniform(*DISTANCE), rng.uniform(*FOVY)))
    return torch.from_numpy(render(shots)[0]).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def verdicts(judge: Judge, pictures: Tensor, wanted: Sequence[Wanted], batch: int = 256) -> dict[str, Tensor]:
    """Whether the judge names what was asked for: "object", "colour", "both", "view" (one of nine), each (N,) bool.

    pictures: (N, 3, 64, 64) in [0, 1], one of each of N `wanted`.
    """
    classes = {"object": list(OBJECTS), "colour": list(COLOURS), "view": list(VIEWS)}
    named: dict[str, list[Tensor]] = {name: [] for name in classes}
    for part in pictures.split(batch):
        logits = judge(part)
        for name in classes:
            named[name].append(logits[name].argmax(1))
    found = {
        name: torch.cat(named[name]).cpu() == torch.tensor([names.index(one[i]) for one in wanted])
        for i, (name, names) in enumerate(classes.items())
    }
    return {**found, "both": found["object"] & found["colour"]}


def agreement(judge: Judge, pictures: Tensor, wanted: Sequence[Wanted]) -> dict[str, float]:
    """Shares of pictures in which the judge names object, colour, both, and view as they were asked for; the view
    where the object has a front to tell. Arguments as of `verdicts`."""
    from .objects import ROUND

    found = verdicts(judge, pictures, wanted)
    tells = torch.tensor([obj not in ROUND or view == "overhead view" for obj, _, view in wanted])
    found["view"] = found["view"][tells]
    return {name: found[name].float().mean().item() for name in ("object", "colour", "both", "view")}
