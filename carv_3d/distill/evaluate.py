"""Images of a one-step generator and of its teacher, begun from the same noise, and what the classifier makes of
them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from carv_3d.distill.generator import OneStepGenerator
from carv_3d.errors import CarvError
from carv_3d.evaluation.distances import kernel_distance
from carv_3d.evaluation.scoring import at_classifier_size
from carv_3d.guidance.sampling import prompt_images, pure_noise
from carv_3d.io.images import contact_sheet, to_uint8, write_png
from carv_3d.stats.bootstrap import Interval, ratio_of_means

SHEET_PIXELS = 128  # small images are enlarged to about this
CAPTION_HEIGHT = 14


@torch.no_grad()
def one_step_images(
    generator: nn.Module, teacher: Any, prompts: Sequence[str], seed: int = 0, batch: int = 32
) -> Tensor:
    """One image of each of N prompts, (N, 3, H, W) in [0, 1], by one evaluation of the network each.

    generator: a OneStepGenerator, or its UNet alone, read with the teacher's schedule and prediction type. It is used
        as it is; give the averaged one. The noise depends on the seed and N alone, not on `batch`.
    """
    if not isinstance(generator, OneStepGenerator):
        generator = OneStepGenerator(generator, teacher.schedule, teacher.prediction_type)
    made = []
    for eps, names in _batches(teacher, prompts, seed, batch):
        made.append(teacher.decode(generator(eps, teacher.text_embeddings(names).float())))
    return torch.cat(made)


def ddim_images(
    teacher: Any, prompts: Sequence[str], scale: float, steps: int, seed: int = 0, batch: int = 50
) -> Tensor:
    """The teacher's own, (N, 3, H, W) in [0, 1], by `steps` of DDIM with guidance (2 N rows a step), from the noise of
    `one_step_images` with the same seed."""
    made = [
        prompt_images(teacher, names, scale, steps, noise=eps) for eps, names in _batches(teacher, prompts, seed, batch)
    ]
    return torch.cat(made).permute(0, 3, 1, 2)


def _batches(teacher: Any, prompts: Sequence[str], seed: int, batch: int) -> list[tuple[Tensor, list[str]]]:
    eps = pure_noise(teacher, len(prompts), seed)
    return [(eps[i : i + batch], list(prompts[i : i + batch])) for i in range(0, len(prompts), batch)]


@contextlib.contextmanager
def counted_rows(unet: nn.Module) -> Iterator[list[int]]:
    """Within, the list gets the rows of each evaluation of `unet`."""
    rows: list[int] = []
    hook = unet.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    try:
        yield rows
    finally:
        hook.remove()


@torch.no_grad()
def classifier_features(classifier: Any, images: Tensor, batch: int = 256) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> (N, 640), the classifier's features, see `carv_3d.evaluation.distances`."""
    return torch.cat([classifier.features(at_classifier_size(part)) for part in images.split(batch)])


@dataclass
class Scores:
    """Of some images: shares in which the classifier names the object, the color, both, and the squared kernel distance
    of its features from those of reference images. correct: per image, see `tiny.agreement.correct`."""

    object: float
    color: float
    both: float
    kernel: Interval
    features: Tensor
    correct: dict[str, Tensor]

    def ratio(self, teacher: Scores) -> Interval:
        """This share of both over the teacher's for the same prompts, resampled by prompt."""
        return ratio_of_means(self.correct["both"].double(), teacher.correct["both"].double())

    def figures(self) -> dict[str, float]:
        """By the names of `compare.metrics`, for a row of a curve."""
        shares = {"agreement_object": self.object, "agreement_color": self.color, "agreement_both": self.both}
        return {**shares, "kernel_distance": self.kernel.value}


def score_images(classifier: Any, images: Tensor, targets: Sequence[Any], reference: Tensor) -> Scores:
    """images: (N, 3, H, W) in [0, 1], one for each of N `targets` (`tiny.agreement.Target`). reference: (N, 640),
    features of true images of the same `targets`."""
    from carv_3d.tiny.agreement import correct, predict

    found = correct(predict(classifier, at_classifier_size(images)), targets)
    features = classifier_features(classifier, images)
    shares = {name: float(found[name].double().mean()) for name in ("object", "color", "both")}
    return Scores(**shares, kernel=kernel_distance(features, reference, paired=True), features=features, correct=found)


def preview_sheet(images: Tensor, path: Path, captions: Sequence[str], columns: int | None = None) -> None:
    """A PNG of images (N, 3, H, W) in [0, 1], each over its caption, `columns` a row (about a square unless given).

    Small images are enlarged, captions too long for their image are cut. Written whole or not at all.
    Raises CarvError for other than N captions, and as `write_png`.
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
