"""Training images as people have them: captions of every kind, and files that are not what their names say."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from carv_3d.attribution.folder_images import FolderImages
from carv_3d.attribution.images import read_image
from carv_3d.attribution.queries import image_query
from carv_3d.errors import CarvError

SIZE = 16


def noise(seed: int = 0, size: int = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train").mkdir()
    for name in ("a.png", "train/b.png"):
        noise().save(tmp_path / name)
    return tmp_path


def captions(folder: Path) -> list[str]:
    images = FolderImages(folder, SIZE)
    return [images.caption(i) for i in range(len(images))]


def left_out(folder: Path) -> dict[str, str]:
    return dict(FolderImages(folder, SIZE).report.left_out)


def rows(*entries: dict[str, object]) -> str:
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


@pytest.mark.parametrize("column", ["text", "caption"])
def test_captions_of_either_name_in_the_folder_or_below(column: str, folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(rows({"file_name": "a.png", column: "a dog"}))
    (folder / "train" / "metadata.jsonl").write_text(rows({"file_name": "b.png", column: "a cat"}))
    assert captions(folder) == ["a dog", "a cat"]
    (folder / "train" / "metadata.jsonl").unlink()
    (folder / "metadata.jsonl").write_text(rows({"file_name": "./train/../train/b.png", column: "a cat"}))
    assert captions(folder) == ["", "a cat"]


def test_a_caption_of_null_is_none_and_a_line_ends_at_a_line_feed_alone(folder: Path) -> None:
    entries = rows({"file_name": "a.png", "text": None}, {"file_name": "train/b.png", "text": "one\u2028two\x85"})
    (folder / "metadata.jsonl").write_text(entries, encoding="utf-8-sig")
    assert captions(folder) == ["", "one\u2028two\x85"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({"file_name": "a.png", "label": "a dog"}, "line 1 of .* has file_name, label and no text or caption"),
        ({"file_name": "images/a.png", "text": "a dog"}, r"none of the 1 file names in .* \(the first is 'images/a"),
        ({"file_name": "a.png", "text": ["a dog"]}, "line 1 of .* has text .* it must be text"),
        ({"file_name": 3, "text": "a dog"}, "line 1 of .* has no file_name"),
        ({"text": "a dog"}, "line 1 of .* has no file_name"),
        ([], "line 1 of .* does not hold a JSON object"),
    ],
)
def test_captions_that_fit_no_image_are_refused(line: dict[str, object], why: str, folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(rows(line))
    with pytest.raises(CarvError, match=why):
        FolderImages(folder, SIZE)


def test_rows_may_be_of_images_beyond_the_limit(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(rows({"file_name": "train/b.png", "text": "a cat"}))
    assert FolderImages(folder, SIZE, limit=1).caption(0) == ""


@pytest.mark.parametrize(
    ("make", "why"),
    [(os.mkfifo, "is a pipe, and a file is due"), (lambda path: path.symlink_to("nowhere"), "is missing")],
)
def test_an_image_that_is_no_file_is_left_out_and_listed(
    make: Callable[[Path], object], why: str, folder: Path
) -> None:
    make(folder / "c.png")
    images = FolderImages(folder, SIZE)
    assert len(images) == 2
    ((name, reason),) = images.report.left_out
    assert name == "c.png"
    assert reason.startswith(why)


def test_a_folder_with_the_name_of_an_image_is_gone_into(folder: Path) -> None:
    (folder / "d.png").mkdir()
    noise().save(folder / "d.png" / "e.png")
    assert len(FolderImages(folder, SIZE)) == 3


def test_a_text_next_to_an_image_is_utf_8_with_or_without_a_mark(folder: Path) -> None:
    (folder / "a.txt").write_text("a dog\n", encoding="utf-8-sig")
    assert captions(folder) == ["a dog", ""]
    (folder / "a.txt").write_bytes(b"caf\xe9")
    assert left_out(folder)["a.png"].endswith("a.txt is not text in UTF-8; mend it or delete it")
    (folder / "a.txt").unlink()
    os.mkfifo(folder / "a.txt")
    assert "a.txt is a pipe" in left_out(folder)["a.png"]


def test_names_with_a_leading_dot_are_left_out(folder: Path) -> None:
    (folder / ".ipynb_checkpoints").mkdir()
    noise().save(folder / ".ipynb_checkpoints" / "a.png")
    (folder / "._a.png").write_bytes(b"no image")
    (folder / ".ipynb_checkpoints" / "metadata.jsonl").write_text("no rows")
    images = FolderImages(folder, SIZE)
    assert [images.key(i) for i in range(len(images))] == ["a.png", "train/b.png"]


def test_a_name_that_is_no_utf_8_can_be_written_anywhere(folder: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    noise(3).save(path)
    images = FolderImages(folder, SIZE)
    assert images.key(1) == r"caf\xe9.png"
    assert images.fingerprint()
    assert np.array_equal(images.image(1), np.asarray(noise(3)))
    query = image_query(path, "", SIZE, resize=False)
    assert query.title == r"caf\xe9.png"


def test_gray_of_16_bits_is_scaled(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, SIZE * SIZE).reshape(SIZE, SIZE)
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", SIZE, resize=False)
    assert np.abs(image - values[..., None] / 257).max() <= 0.501


def test_an_image_stands_as_its_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    noise().save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png", SIZE, False), np.rot90(np.asarray(noise()), -1))


def test_ink_is_turned_into_light(tmp_path: Path) -> None:
    Image.new("CMYK", (SIZE, SIZE), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red, green, blue = read_image(tmp_path / "a.jpg", SIZE, False)[4, 4]
    assert red > 240
    assert max(green, blue) < 20


def long_text(path: Path) -> None:
    info = PngInfo()
    info.add_text("key", "x" * 3_000_000, zip=True)
    noise().save(path, pnginfo=info)


def bomb(path: Path) -> None:
    data = io.BytesIO()
    noise().save(data, "PNG")
    png = bytearray(data.getvalue())
    png[16:24] = struct.pack(">II", 60_000, 60_000)
    png[29:33] = struct.pack(">I", zlib.crc32(bytes(png[12:29])))
    path.write_bytes(png)


def cut(path: Path) -> None:
    noise().save(path)
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (long_text, "is cut short or damaged .*too large"),
        (bomb, "has more than 67,108,864 pixels"),
        (cut, "is cut short or damaged"),
        (lambda path: noise().save(path, "GIF"), "is no image that can be read"),
        (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "is no image that"),
        (lambda path: path.write_bytes(b""), "is no image that can be read"),
        (os.mkfifo, "is a pipe, and a file is due"),
        (os.mkdir, "is a folder, and a file is due"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, and a file is due"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    ],
)
def test_what_is_no_image_is_one_sentence_with_its_name(
    make: Callable[[Path], object], why: str, tmp_path: Path
) -> None:
    make(tmp_path / "a.png")
    with pytest.raises(CarvError, match=rf"a\.png.* {why}" if not why.startswith("Too") else why):
        read_image(tmp_path / "a.png", SIZE, resize=False)
