"""What a classifier makes of images of a prompt."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from carv_3d.evaluation.scoring import PromptClassifier, at_classifier_size
from carv_3d.tiny import vocabulary


class Known:
    """Logits by the first pixel: sure of class 0 where it is white, of class 1 where it is black."""

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        assert images.shape[1:] == (3, 64, 64)
        sure = (images[:, 0, 0, 0] * 2 - 1) * 100
        return {"object": torch.stack([sure, -sure], 1), "color": torch.stack([-sure, sure], 1)}


def test_a_score_is_the_mean_of_probabilities_over_views() -> None:
    """One view sure and right, one sure and wrong: 0.5; a probability of mean logits would be 0.9 of the surer."""
    views = torch.stack([torch.ones(64, 64, 3), torch.full((64, 64, 3), 0.4)])
    scores = PromptClassifier(Known(), {"object": 0, "color": 0}, torch.device("cpu")).score(views)
    assert scores == pytest.approx({"classifier_object": 0.5, "classifier_color": 0.5}, abs=1e-6)
    three = torch.cat([views, torch.ones(1, 64, 64, 3)])
    scores = PromptClassifier(Known(), {"object": 0, "color": 0}, torch.device("cpu")).score(three)
    assert scores["classifier_object"] == pytest.approx(2 / 3, abs=1e-6)
    assert scores["classifier_color"] == pytest.approx(1 / 3, abs=1e-6)


def test_the_right_classes_are_those_of_the_prompt() -> None:
    plain, striped, unknown = PromptClassifier.for_prompts(
        ["a mug", "a striped red teapot", "a zeppelin"], torch.device("cpu")
    )
    assert unknown is None
    assert plain is not None
    assert striped is not None
    objects, colors = list(vocabulary.OBJECTS), list(vocabulary.COLORS)
    materials = list(vocabulary.MATERIALS)
    assert plain.targets == {"object": objects.index("mug"), "material": materials.index("plain")}
    assert striped.targets == {
        "object": objects.index("teapot"), "color": colors.index("red"), "material": materials.index("striped"),
    }  # fmt: skip


def test_images_of_another_size_are_resized() -> None:
    images = torch.rand(2, 3, 128, 128)
    small = at_classifier_size(images)
    assert small.shape == (2, 3, 64, 64)
    assert float(small.mean()) == pytest.approx(float(images.mean()), abs=2e-3)
    assert torch.equal(at_classifier_size(small), small)


def test_the_classifiers_of_all_captions_share_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from carv_3d.tiny.classifier import Classifier

    loaded, load = [], Classifier.load
    monkeypatch.setattr(Classifier, "load", lambda: loaded.append(load()) or loaded[-1])
    classifiers = PromptClassifier.for_prompts(["a red mug", "a zeppelin", "a blue tree"], torch.device("cpu"))
    assert len(loaded) == 1
    assert classifiers[1] is None
    views = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    for prompt, classifier in (("a red mug", classifiers[0]), ("a blue tree", classifiers[2])):
        alone = PromptClassifier.for_prompt(prompt, torch.device("cpu"))
        assert classifier is not None
        assert alone is not None
        assert classifier.classifier is loaded[0]
        assert classifier.score(views) == alone.score(views)
    assert classifiers[0].targets != classifiers[2].targets  # type: ignore[union-attr]
    assert PromptClassifier.for_prompts(["a zeppelin"], torch.device("cpu")) == [None]


def test_a_larger_image_is_averaged_and_not_sampled() -> None:
    """Columns 1, 0, 0, 1: the middle of each four is black, their mean is half."""
    images = torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(64).expand(1, 3, 256, 256)
    assert float((at_classifier_size(images) - 0.5).abs().max()) < 0.2
