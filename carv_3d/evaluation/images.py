"""Images that are to be compared: a teacher's own, what the classifier makes of them, and sheets of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.evaluation.distances import kernel_distance
from carv_3d.evaluation.scoring import at_classifier_size
from carv_3d.guidance.sampling import prompt_images, pure_noise
from carv_3d.io.images import contact_sheet, to_uint8, write_png
from carv_3d.stats.bootstrap import Interval, ratio_of_means

SHEET_PIXELS = 128  # small images are enlarged to about this
CAPTION_HEIGHT = 14


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
        correct: by image, see `carv_3d.tiny.agreement`.
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
        targets: N of `tiny.agreement.Target`.
        reference: (N, 640), features of true images of the same targets.
    """
    from carv_3d.tiny.agreement import correct, predict

    right = correct(predict(classifier, at_classifier_size(images)), targets)
    features = classifier_features(classifier, images)
    shares = {name: float(right[name].double().mean()) for name in ("object", "color", "both")}
    kernel = kernel_distance(features, reference, paired=True)
    return ImageScores(**shares, kernel=kernel, features=features, correct=right)


def preview_sheet(images: Tensor, path: Path, captions: Sequence[str], columns: int | None = None) -> None:
    """Write a PNG of images, each over its caption; small images are enlarged, long captions are cut.

    Args:
        images: (N, 3, H, W) in [0, 1].
        path: written whole or not at all.
        captions: N of them.
        columns: images a row, about a square unless given.

    Raises:
        CarvError: another number of captions, or what `write_png` raises.
    """
    if len(captions) != len(images) or len(images) == 0:
        raise CarvError(f"a sheet of {len(images)} images has {len(captions)} captions; each needs its own.")
    scale = max(1, SHEET_PIXELS // images.shape[-1])
    pixels = to_uint8(images.permute(0, 2, 3, 1))
    cells = [_captioned(image, caption, scale) for image, caption in zip(pixels, captions)]
    write_png(path, contact_sheet(np.stack(cells), columns or int(np.ceil(len(cells) ** 0.5)), gap=4))


def _captioned(image: np.ndarray, caption: str, scale: int) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    height, width = image.shape[0] * scale, image.shape[1] * scale
    cell = Image.new("RGB", (width, height + CAPTION_HEIGHT), "white")
    cell.paste(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default()
    text = " ".join(caption.split()).encode("latin-1", "replace").decode("latin-1")  # what Pillow's own font has
    while len(text) > 1 and draw.textlength(text, font=font) > width:
        text = text.rstrip(".")[:-1].rstrip() + ".."
    draw.text((1, height + 1), text, fill="black", font=font)
    return np.asarray(cell)
