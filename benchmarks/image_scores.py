"""Images of a teacher and of a one-step generator from the same noise, and what the classifier makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from agreement import correct, predict
from torch import Tensor, nn

from carv_3d.distill.network import OneStepGenerator
from carv_3d.evaluation.distances import kernel_distance
from carv_3d.evaluation.scoring import at_classifier_size
from carv_3d.guidance.sampling import prompt_images, pure_noise
from carv_3d.stats.bootstrap import Interval, ratio_of_means


def noise_batches(teacher: Any, prompts: Sequence[str], seed: int, batch: int) -> list[tuple[Tensor, list[str]]]:
    """Noise and prompts in batches; the noise of a prompt depends on the seed and the number of prompts alone."""
    eps = pure_noise(teacher, len(prompts), seed)
    return [(eps[i : i + batch], list(prompts[i : i + batch])) for i in range(0, len(prompts), batch)]


@torch.no_grad()
def ddim_images(
    teacher: Any, prompts: Sequence[str], scale: float, steps: int, seed: int = 0, batch: int = 50
) -> Tensor:
    """The teacher's own images (N, 3, H, W) in [0, 1], by `steps` of DDIM with guidance: an NFE of 2 for each step."""
    made = [
        prompt_images(teacher, part, scale, steps, noise=eps)
        for eps, part in noise_batches(teacher, prompts, seed, batch)
    ]
    return torch.cat(made).permute(0, 3, 1, 2)


@torch.no_grad()
def one_step_images(
    generator: nn.Module, teacher: Any, prompts: Sequence[str], seed: int = 0, batch: int = 32
) -> Tensor:
    """One image of each of N prompts, (N, 3, H, W) in [0, 1], by one evaluation of the network each.

    `generator` is a OneStepGenerator, or its UNet alone, read with the teacher's schedule and prediction type. It is
    used as it is; give the averaged one. The images do not depend on `batch`.
    """
    if not isinstance(generator, OneStepGenerator):
        generator = OneStepGenerator(generator, teacher.schedule, teacher.prediction_type)
    made = [
        teacher.decode(generator(eps, teacher.text_embeddings(part).float()))
        for eps, part in noise_batches(teacher, prompts, seed, batch)
    ]
    return torch.cat(made)


@torch.no_grad()
def classifier_features(classifier: Any, images: Tensor, batch: int = 256) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> (N, 640), the classifier's features, see `carv_3d.evaluation.distances`."""
    return torch.cat([classifier.features(at_classifier_size(part)) for part in images.split(batch)])


@dataclass
class ImageScores:
    """Of images of prompts.

    Attributes:
        object: the share in which the classifier names the object; `color` and `both` alike.
        kernel: the squared kernel distance of the images' features from those of reference images.
        features: (N, 640).
        correct: by image, see `agreement.correct`.
    """

    object: float
    color: float
    both: float
    kernel: Interval
    features: Tensor
    correct: dict[str, Tensor]

    def ratio(self, other: ImageScores) -> Interval:
        """This share of both over another's for the same prompts, resampled by prompt."""
        return ratio_of_means(self.correct["both"].double(), other.correct["both"].double())

    def figures(self) -> dict[str, float]:
        """By the names of `compare.metrics`, for a row of a curve."""
        shares = {"agreement_object": self.object, "agreement_color": self.color, "agreement_both": self.both}
        return {**shares, "kernel_distance": self.kernel.value}


def score_images(classifier: Any, images: Tensor, targets: Sequence[Any], reference: Tensor) -> ImageScores:
    """Score images against what was asked for.

    Args:
        classifier: `carv_3d.tiny.classifier.Classifier`.
        images: (N, 3, H, W) in [0, 1], one for each target.
        targets: N of `agreement.Target`.
        reference: (N, 640), features of true images of the same targets.
    """
    right = correct(predict(classifier, images), targets)
    features = classifier_features(classifier, images)
    shares = {name: float(right[name].double().mean()) for name in ("object", "color", "both")}
    kernel = kernel_distance(features, reference, paired=True)
    return ImageScores(**shares, kernel=kernel, features=features, correct=right)
