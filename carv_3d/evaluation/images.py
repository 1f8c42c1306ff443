"""A sheet of images, each over its caption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.io.images import contact_sheet, to_uint8, write_png

SHEET_PIXELS = 128  # small images are enlarged to about this
CAPTION_HEIGHT = 14


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
