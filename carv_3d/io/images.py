"""Images and films: contact sheets, PNG, GIF and MP4, each written whole or not at all; and images of others, read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from carv_3d.errors import CarvError, first_line
from carv_3d.io.files import open_file, write_via

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # others call programs, or are no images of one frame
MAX_BYTES, MAX_PIXELS = 2**28, 2**26  # of an image that is read
REPLACE = "replace it, or take it out of the folder"
SHEET_PIXELS = 128  # small images are enlarged to about this
CAPTION_HEIGHT = 14
ImageArray = NDArray[np.uint8]


def to_uint8(images: Tensor) -> ImageArray:
    """Images (N, H, W, 3) in [0, 1] as bytes; what lies outside is cut off and NaN becomes 0."""
    array = images.detach().float().cpu().nan_to_num(0.0).clamp(0, 1).numpy()
    return (array * 255.0 + 0.5).astype(np.uint8)


def contact_sheet(images: ImageArray, columns: int, gap: int = 2, scale: int = 1) -> ImageArray:
    """Images (N, H, W, 3) on one sheet, `columns` a row, `gap` white pixels apart, enlarged `scale` times.

    Returns one image; cells that are left over in the last row are white.
    """
    n, height, width, _ = images.shape
    rows = -(-n // columns)
    height, width = height * scale, width * scale
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = _enlarge(image, scale)
    return sheet


def _enlarge(image: ImageArray, scale: int) -> ImageArray:
    if scale == 1:
        return image
    from PIL import Image

    size = (image.shape[1] * scale, image.shape[0] * scale)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


@contextmanager
def opened_image(path: Path) -> Iterator[Any]:
    """Pillow's image of a file that may come from anywhere; its pixels are read within, or not at all.

    Args:
        path: of a PNG, JPEG, WebP or BMP.

    Yields:
        The image, of at most `MAX_PIXELS`.

    Raises:
        CarvError: no regular file, no image, one of too many pixels, or damaged; also for what Pillow raises within.
    """
    with open_file(path, REPLACE, MAX_BYTES) as handle, decoded_image(handle, str(path)) as image:
        yield image


@contextmanager
def decoded_image(handle: BinaryIO, name: str) -> Iterator[Any]:
    """As `opened_image`, of bytes that `name` stands for in messages."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(handle, formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield image
        except CarvError:
            raise
        except Image.UnidentifiedImageError:
            raise CarvError(f"{name} is no image that can be read: convert it to PNG, or take it away.") from None
        except Image.DecompressionBombError:
            raise CarvError(f"{name} has more than {MAX_PIXELS:,} pixels: make it smaller, or take it away.") from None
        except Exception as error:  # Pillow raises many kinds for a damaged file
            raise CarvError(f"{name} is cut short or damaged ({first_line(error, 80)}): {REPLACE}.") from error


def as_rgba(image: Any) -> Any:
    """The image as it is meant to be seen, upright and with 8 bits a channel, in mode RGBA."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # gray of 16 bits, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257 + 0.5).astype(np.uint8))
    if image.mode in ("CMYK", "YCbCr"):  # no way leads from them to RGBA at once
        image = image.convert("RGB")
    return image.convert("RGBA")


def write_png(path: Path, image: ImageArray) -> None:
    """Write one image (H, W, 3); CarvError where the disk is full or the place cannot be written."""
    from PIL import Image

    write_via(path, lambda temporary: Image.fromarray(image).save(temporary, format="PNG", optimize=True))


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


def _captioned(image: ImageArray, caption: str, scale: int) -> ImageArray:
    from PIL import Image, ImageDraw, ImageFont

    height, width = image.shape[0] * scale, image.shape[1] * scale
    cell = Image.new("RGB", (width, height + CAPTION_HEIGHT), "white")
    cell.paste(Image.fromarray(_enlarge(image, scale)))
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default()
    text = " ".join(caption.split()).encode("latin-1", "replace").decode("latin-1")  # what Pillow's own font has
    while len(text) > 1 and draw.textlength(text, font=font) > width:
        text = text.rstrip(".")[:-1].rstrip() + ".."
    draw.text((1, height + 1), text, fill="black", font=font)
    return np.asarray(cell)


def write_gif(path: Path, frames: ImageArray, fps: int) -> None:
    """Write frames (N, H, W, 3) as a GIF that loops for ever; CarvError as `write_png`.

    One palette of 256 colors, taken from all frames, so that nothing flickers.
    """
    from PIL import Image

    sample = contact_sheet(frames[:: max(1, len(frames) // 12)], 4, gap=0)
    palette = Image.fromarray(sample).quantize(256, method=Image.Quantize.MEDIANCUT)
    images = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for f in frames]

    def save(temporary: Path) -> None:
        images[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=images[1:],
            duration=max(20, round(100 / fps) * 10),  # milliseconds, in GIF's steps of ten
            loop=0,
        )

    write_via(path, save)


def write_mp4(path: Path, frames: ImageArray, fps: int) -> None:
    """Write frames (N, H, W, 3) as H.264 that every browser plays (odd sizes are padded by a row or column).

    Raises:
        CarvError: there is no ffmpeg on this platform, it failed, or the place cannot be written.
    """
    import imageio.v2 as imageio

    pad = ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0))
    frames = np.pad(frames, pad, mode="edge")

    def save(temporary: Path) -> None:
        # ffmpeg itself writes: an OSError here is about starting it or of its end
        try:
            writer: Any = imageio.get_writer(
                temporary,
                format="FFMPEG",  # type: ignore[arg-type]  # imageio's annotation leaves names out
                fps=fps,
                codec="libx264",
                pixelformat="yuv420p",
                macro_block_size=2,
                output_params=["-crf", "18", "-movflags", "+faststart"],
                ffmpeg_log_level="error",
            )
            with writer:
                for frame in frames:
                    writer.append_data(frame)
        except OSError as error:
            raise RuntimeError(first_line(error)) from error
        if not temporary.exists():
            raise RuntimeError("it wrote nothing")

    try:
        write_via(path, save)
    except (ImportError, RuntimeError) as error:
        named = os.environ.get("IMAGEIO_FFMPEG_EXE")
        fix = f"; IMAGEIO_FFMPEG_EXE names {named}: unset it, or name one that works" if named else ""
        raise CarvError(f"{path.name} was not made: ffmpeg is missing or failed ({first_line(error)}){fix}") from error
