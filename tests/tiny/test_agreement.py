import random

import pytest
import torch

from carv_3d.tiny.agreement import agreement, correct, draw_targets, named, pairs, sides_named, target_prompts
from carv_3d.tiny.classifier import VIEWS
from carv_3d.tiny.vocabulary import COLORS, OBJECTS, check_prompt, parse


def test_seen_and_held_out_combinations_are_all_pairs_once() -> None:
    seen, unseen = pairs(seen=True), pairs(seen=False)
    assert len(seen) == 432
    assert len(unseen) == 48
    assert {*seen, *unseen} == {(o, c) for o in OBJECTS for c in COLORS}


def test_prompts_ask_for_what_is_is_figure() -> None:
    targets = draw_targets(pairs(seen=False), 60, random.Random(3))
    prompts = target_prompts(targets)
    for (obj, color, view), prompt in zip(targets, prompts):
        check_prompt(prompt)
        assert parse(prompt)[:2] == (obj, color)
        assert prompt.endswith(view)
    assert {w[:2] for w in targets} <= set(pairs(seen=False))
    assert len({w[2] for w in targets}) > 5
    assert targets == draw_targets(pairs(seen=False), 60, random.Random(3))


def images_of(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)[:, :, None, None].expand(-1, -1, 4, 4)


class Reader(torch.nn.Module):
    """Names the classes that an image's first three values hold."""

    def forward(self, images):
        told = images[:, :, 0, 0].long()
        sizes = {"object": len(OBJECTS), "color": len(COLORS), "view": len(VIEWS)}
        return {k: torch.nn.functional.one_hot(told[:, i], n).float() for i, (k, n) in enumerate(sizes.items())}


def test_the_share_of_images_that_show_what_was_asked() -> None:
    bottles = [("bottle", "blue", "front view"), ("bottle", "blue", "overhead view")]
    targets = [("mug", "red", "front view")] * 3 + bottles
    rows = [[list(OBJECTS).index(o), list(COLORS).index(c), VIEWS.index(v)] for o, c, v in targets]
    rows[0][0] += 1  # another object
    rows[1][1] += 1  # another color
    rows[2][2] += 1  # another view
    rows[3][2] += 1  # a bottle has no front to tell, so this is not counted
    images = images_of(rows)
    told = named(Reader(), images, batch=2)
    found = correct(told, targets)
    assert found["object"].tolist() == [False, True, True, True, True]
    assert found["color"].tolist() == [True, False, True, True, True]
    assert found["both"].tolist() == [False, False, True, True, True]
    shares = agreement(told, targets)
    assert shares == pytest.approx({"object": 0.8, "color": 0.8, "both": 0.6, "view": 3 / 4})


def test_where_the_views_go() -> None:
    asked = {  # the view asked for, those named, and what each is
        "front view": {"front view": "as asked", "front left view": "neighbour", "front right view": "neighbour",
                       "back view": "opposite", "left view": "another side", "overhead view": "overhead"},
        "left view": {"right view": "mirror image", "back view": "another side", "back left view": "neighbour"},
        "back left view": {"back right view": "mirror image", "front right view": "opposite"},
    }  # fmt: skip
    told = [(view, name, what) for view, names in asked.items() for name, what in names.items()]
    targets = [("mug", "red", view) for view, _, _ in told]
    rows = [[0, 0, VIEWS.index(name)] for _, name, _ in told]
    # neither counts: a bottle has no front, and from above there are no sides
    targets += [("bottle", "red", "front view"), ("mug", "red", "overhead view")]
    rows += [[0, 0, 0], [0, 0, 0]]
    shares = sides_named(named(Reader(), images_of(rows)), targets)
    for what in ("as asked", "neighbour", "mirror image", "opposite", "another side", "overhead"):
        assert shares[what] == pytest.approx(sum(w == what for _, _, w in told) / len(told))
