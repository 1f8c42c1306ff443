import random

import numpy as np
import pytest
import torch
from agreement import (
    agreement,
    combinations,
    correct,
    draw_targets,
    predict,
    target_prompts,
    true_renders,
    view_errors,
)

from carv_3d.scenes.view_phrases import view_phrase
from carv_3d.tiny.classifier import VIEWS
from carv_3d.tiny.vocabulary import COLORS, OBJECTS, check_prompt, parse


def test_training_and_held_out_combinations_are_all_once() -> None:
    training, held_out = combinations(held_out=False), combinations(held_out=True)
    assert len(training) == 432
    assert len(held_out) == 48
    assert {*training, *held_out} == {(o, c) for o in OBJECTS for c in COLORS}


def test_prompts_ask_for_their_targets() -> None:
    targets = draw_targets(combinations(held_out=True), 60, random.Random(3))
    prompts = target_prompts(targets)
    for (obj, color, view), prompt in zip(targets, prompts):
        check_prompt(prompt)
        assert parse(prompt)[:2] == (obj, color)
        assert prompt.endswith(view)
    assert {w[:2] for w in targets} <= set(combinations(held_out=True))
    assert len({w[2] for w in targets}) > 5
    assert targets == draw_targets(combinations(held_out=True), 60, random.Random(3))


def test_true_renders_are_of_the_targets_from_all_over_their_views(monkeypatch) -> None:
    recorded = []

    def render(shots, size):
        recorded.extend(shots)
        return np.full((len(shots), size, size, 3), 51, np.uint8), None

    monkeypatch.setattr("carv_3d.tiny.render.render", render)
    targets = [("mug", "red", VIEWS[i % len(VIEWS)]) for i in range(900)]
    images = true_renders(targets, random.Random(0))
    assert images.shape == (900, 3, 64, 64)
    assert true_renders(targets[:2], random.Random(0), 128).shape == (2, 3, 128, 128)
    del recorded[900:]
    assert float(images.mean()) == pytest.approx(0.2)
    assert [view_phrase(shot.elevation, shot.azimuth) for shot in recorded] == [view for _, _, view in targets]
    for i in range(8):
        aside = [shot.azimuth - 45 * i for shot in recorded[i :: len(VIEWS)]]
        assert -22.5 <= min(aside) < -20
        assert 20 < max(aside) <= 22.5


def class_images(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)[:, :, None, None].expand(-1, -1, 4, 4)


class Reader(torch.nn.Module):
    """Names the classes that an image's first three values hold."""

    def forward(self, images):
        classes = images[:, :, 0, 0].long()
        sizes = {"object": len(OBJECTS), "color": len(COLORS), "view": len(VIEWS)}
        return {k: torch.nn.functional.one_hot(classes[:, i], n).float() for i, (k, n) in enumerate(sizes.items())}


def test_the_share_of_images_that_show_what_was_asked() -> None:
    bottles = [("bottle", "blue", "front view"), ("bottle", "blue", "overhead view")]
    targets = [("mug", "red", "front view")] * 3 + bottles
    rows = [[list(OBJECTS).index(o), list(COLORS).index(c), VIEWS.index(v)] for o, c, v in targets]
    rows[0][0] += 1  # another object
    rows[1][1] += 1  # another color
    rows[2][2] += 1  # another view
    rows[3][2] += 1  # a bottle has no front, so this is not counted
    images = class_images(rows)
    predicted = predict(Reader(), images, batch=2)
    right = correct(predicted, targets)
    assert right["object"].tolist() == [False, True, True, True, True]
    assert right["color"].tolist() == [True, False, True, True, True]
    assert right["both"].tolist() == [False, False, True, True, True]
    shares = agreement(predicted, targets)
    assert shares == pytest.approx({"object": 0.8, "color": 0.8, "both": 0.6, "view": 3 / 4})


def test_where_the_views_go() -> None:
    asked = {  # the view asked for, those named, and what each is
        "front view": {"front view": "as asked", "front left view": "neighbor", "front right view": "neighbor",
                       "back view": "opposite", "left view": "another side", "overhead view": "overhead"},
        "left view": {"right view": "mirror image", "back view": "another side", "back left view": "neighbor"},
        "back left view": {"back right view": "mirror image", "front right view": "opposite"},
    }  # fmt: skip
    answers = [(view, name, what) for view, names in asked.items() for name, what in names.items()]
    targets = [("mug", "red", view) for view, _, _ in answers]
    rows = [[0, 0, VIEWS.index(name)] for _, name, _ in answers]
    # neither counts: a bottle has no front, and from above there are no sides
    targets += [("bottle", "red", "front view"), ("mug", "red", "overhead view")]
    rows += [[0, 0, 0], [0, 0, 0]]
    shares = view_errors(predict(Reader(), class_images(rows)), targets)
    for what in ("as asked", "neighbor", "mirror image", "opposite", "another side", "overhead"):
        assert shares[what] == pytest.approx(sum(w == what for _, _, w in answers) / len(answers))
