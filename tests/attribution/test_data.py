"""Folders and tars as people have them: some of it damaged, some of it there twice, and names that mean harm."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from carv_3d.attribution.folder_images import FolderImages
from carv_3d.attribution.images import model_image
from carv_3d.errors import CarvError

SIZE = 16


def pixels(seed: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, channels), dtype=np.uint8)


def encoded(seed: int = 0, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed)).save(buffer, form)
    return buffer.getvalue()


def write(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(seed))


def write_tar(path: Path, members: list[tuple[str | tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def content(images: FolderImages) -> dict[str, str]:
    return {images.key(i): images.caption(i) for i in range(len(images))}


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def test_the_layout_of_hugging_face_with_metadata_in_each_split(tmp_path: Path) -> None:
    for name in ("train/a.png", "train/deep/b.png", "test/c.png", "d.png"):
        write(tmp_path / name, seed=len(name))
    quoted = 'text,file_name,x\r\n"a ""red"" mug,\nleft",a.png,1\r\na cup,deep/b.png,2'  # no line break at the end
    (tmp_path / "train" / "metadata.csv").write_text(quoted, encoding="utf-8-sig", newline="")
    (tmp_path / "test" / "metadata.csv").write_text("file_name,caption\nc.png,from the table\n")
    (tmp_path / "test" / "metadata.jsonl").write_text('{"file_name": "c.png", "text": "from the lines"}\n')
    assert content(FolderImages(tmp_path, SIZE)) == {
        "d.png": "",
        "test/c.png": "from the lines",
        "train/a.png": 'a "red" mug,\nleft',
        "train/deep/b.png": "a cup",
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("file_name;text\na.png;a mug\n", "line 2 of .* has no file_name"),
        ("file_name,label\na.png,a mug\n", "line 2 of .* has file_name, 2 columns and no text or caption"),
        ("file_name,text\na.png\n", "line 2 of .* has 1 cells, and the first line 2"),
        ("file_name,text\nimages/a.png,x\n", r"none of the 1 file names in .* \(the first is 'images/a"),
        ("file_name,text\na.png," + "x" * 200_000, "is not readable CSV .*field larger than"),
        ("file_name,text\na.png,x\n".encode("utf-16"), "is not text in UTF-8"),
    ],
)
def test_a_table_that_cannot_be_meant_is_one_sentence(text: str | bytes, why: str, tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CarvError, match=why) as refused:
        FolderImages(tmp_path, SIZE)
    assert len(str(refused.value)) < 1200


def test_a_table_of_very_many_columns_is_read_by_the_two_that_count(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    many = 200_000
    names = ",".join(f"c{i}" for i in range(many))
    (tmp_path / "metadata.csv").write_text(f"file_name,{names},text\na.png,{',' * (many - 1)},a mug\n")
    assert content(FolderImages(tmp_path, SIZE)) == {"a.png": "a mug"}


def test_damaged_images_among_good_ones_are_left_out_and_listed(tmp_path: Path) -> None:
    write(tmp_path / "good.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(encoded(1)[:300])
    (tmp_path / "words.jpg").write_text("no image")
    (tmp_path / "moving.gif").write_bytes(encoded(1, "GIF"))
    (tmp_path / "photos.tar.gz").write_bytes(b"\x1f\x8b")
    os.mkfifo(tmp_path / "pipe.png")
    images = FolderImages(tmp_path, SIZE)
    assert content(images) == {"good.png": ""}
    reasons = dict(images.report.left_out)
    assert sorted(reasons) == ["cut.png", "empty.png", "moving.gif", "photos.tar.gz", "pipe.png", "words.jpg"]
    assert reasons["pipe.png"].startswith("is a pipe")
    assert reasons["cut.png"].startswith("is cut short or damaged")
    assert reasons["empty.png"].startswith("is no image that can be read")
    assert "convert it" in reasons["moving.gif"]
    assert "unpack it" in reasons["photos.tar.gz"]
    said: list[str] = []
    images.report.say(len(images), said.append)
    assert said == [
        "6 of 7 files left out (left_out.csv lists them). The first, moving.gif, is no PNG, JPEG, WebP or BMP; "
        "convert it"
    ]


def test_where_no_image_can_be_read_it_is_one_sentence(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CarvError, match=r"no image of .* can be read, of 2 that there are.*the first is a\.png, which"):
        FolderImages(tmp_path, SIZE)


def test_an_image_of_another_size_is_no_damage(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    with pytest.raises(CarvError, match=r"b\.png is 8×8 pixels .* pass --resize"):
        FolderImages(tmp_path, SIZE)
    assert len(FolderImages(tmp_path, SIZE, resize=True)) == 2


def test_the_first_items_are_those_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    for i, name in enumerate("bcd"):
        write(tmp_path / f"{name}.png", i)
    images = FolderImages(tmp_path, SIZE, limit=2)
    assert list(content(images)) == ["b.png", "c.png"]
    assert [name for name, _ in images.report.left_out] == ["a.png"]


def test_the_same_pixels_are_reported_whatever_the_format(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 1)
    write(tmp_path / "b.png", 2)
    (tmp_path / "c.bmp").write_bytes(encoded(1, "BMP"))
    (tmp_path / "d.png").write_bytes(encoded(1))
    images = FolderImages(tmp_path, SIZE)
    assert len(images) == 4
    assert images.report.duplicates == [("c.bmp", "a.png"), ("d.png", "a.png")]
    said: list[str] = []
    images.report.say(4, said.append)
    assert said == [
        "Training images with the pixels of an earlier one: 2 (duplicates.csv lists them), the first is c.bmp, with "
        "those of a.png."
    ]


def test_every_kind_of_pixel_is_seen_as_it_is_meant(tmp_path: Path) -> None:
    flat, values = pixels(3), np.arange(256, dtype=np.uint8).reshape(SIZE, SIZE)
    clear = np.dstack([flat, np.where(values < 128, 0, 255).astype(np.uint8)])
    palette = Image.fromarray(values).convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    palette_clear = Image.fromarray(values // 128).convert("P")
    palette_clear.putpalette([200, 10, 20, 30, 40, 50])
    cases: dict[str, tuple[Image.Image, np.ndarray, bool, dict[str, object]]] = {
        "gray": (Image.fromarray(values), np.dstack([values] * 3), False, {}),
        "gray and alpha": (
            Image.merge("LA", [Image.fromarray(values), Image.fromarray(clear[..., 3])]),
            np.where(clear[..., 3:] == 0, 255, np.dstack([values] * 3)), True, {},
        ),
        "palette": (palette, np.asarray(palette.convert("RGB")), False, {}),
        "palette, a clear color": (
            palette_clear, np.where((values < 128)[..., None], 255, np.uint8([30, 40, 50])), True, {"transparency": 0},
        ),
        "alpha": (Image.fromarray(clear), np.where(clear[..., 3:] == 0, 255, flat), True, {}),
        "bits": (Image.fromarray(values > 99), np.dstack([np.where(values > 99, 255, 0)] * 3), False, {}),
    }  # fmt: skip
    for name, (image, expected, transparent, more) in cases.items():
        image.save(tmp_path / f"{name}.png", **more)
        read, on_white = model_image((tmp_path / f"{name}.png").read_bytes(), name, SIZE, False)
        assert np.array_equal(read, expected), name
        assert on_white is transparent, name
    images = FolderImages(tmp_path, SIZE)
    assert images.report.on_white == 3
    said: list[str] = []
    images.report.say(6, said.append)
    assert said[0] == "Training images that are transparent in part, on white from here on: 3."


def test_color_of_16_bits_is_scaled(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (SIZE, SIZE, 3), dtype=np.uint16)
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = SIZE.to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0])
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    read, _ = model_image(png, "a", SIZE, False)
    assert np.abs(read - values / 257).max() < 1


def test_a_tar_of_samples_with_captions_of_either_kind(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    samples: list[tuple[str | tarfile.TarInfo, bytes]] = [
        ("./s/000.txt", "a cup\n".encode("utf-8-sig")), ("./s/000.png", encoded(0)),
        ("./s/000.json", b'{"text": "no"}'),
        ("s/001.png", encoded(1)), ("s/001.json", json.dumps({"caption": "café", "w": 2}).encode()),
        ("s/002.mask.png", encoded(2)), ("s/002.txt", b"a mask"), ("s/003.jpg", encoded(3, "JPEG")),
        ("s/003.cls", b"7"), ("s/005.PNG", encoded(5)), ("s/005.TXT", b"a car"), ("s/005.json", b"{"),
        ("s/004.png", encoded(4)), ("s/004.txt", b"caf\xe9"), ("s/._000.png", b"no image"),
    ]  # fmt: skip
    write_tar(tmp_path / "shards" / "0.tar", samples)
    write_tar(tmp_path / "shards" / "1.tar", [("000.png", encoded(0))])
    write(tmp_path / "loose.png", 9)
    images = FolderImages(tmp_path, SIZE)
    assert content(images) == {
        "loose.png": "", "shards/0.tar/s/000.png": "a cup", "shards/0.tar/s/001.png": "café",
        "shards/0.tar/s/002.mask.png": "a mask", "shards/0.tar/s/003.jpg": "", "shards/0.tar/s/005.PNG": "a car",
        "shards/1.tar/000.png": "",
    }  # fmt: skip
    assert np.array_equal(images.image(2), pixels(1))
    assert images.report.left_out == [
        ("shards/0.tar/s/004.png", "has a caption that cannot be read: it is not text in UTF-8")
    ]
    assert images.report.duplicates == [("shards/1.tar/000.png", "shards/0.tar/s/000.png")]
    one_tar = FolderImages(tmp_path / "shards" / "1.tar", SIZE)
    assert content(one_tar) == {"1.tar/000.png": ""}
    several = FolderImages(tmp_path / "shards" / "*.tar", SIZE)
    assert sorted(content(several)) == sorted(k.removeprefix("shards/") for k in content(images) if ".tar" in k)
    (tmp_path / "more").mkdir()
    write_tar(tmp_path / "more" / "0.tar", [("a.png", encoded(8))])
    assert list(content(FolderImages(tmp_path / "*" / "0.tar", SIZE, limit=2))) == [
        "more/0.tar/a.png", "shards/0.tar/s/000.png",
    ]  # fmt: skip


def test_a_range_of_tars_is_all_of_them_or_an_error_that_names_what_is_absent(tmp_path: Path) -> None:
    for n in (8, 9, 10):
        write_tar(tmp_path / f"a-{n:03}.tar", [("x.png", encoded(n))])
    write_tar(tmp_path / "a-{1..2}.tar", [("y.png", encoded(1))])
    both = content(FolderImages(tmp_path / "a-{009..010}.tar", SIZE))
    assert list(both) == ["a-009.tar/x.png", "a-010.tar/x.png"]
    assert list(content(FolderImages(tmp_path / "a-{1..2}.tar", SIZE))) == ["a-{1..2}.tar/y.png"]  # a name as it stands
    assert list(content(FolderImages(tmp_path / "a-0{0..0}{8..8}*.tar", SIZE))) == ["a-008.tar/x.png"]
    for pattern, words in {
        "a-{008..011}.tar": "there is no .*a-011.tar, which .* names; name those that are there",
        "a-{011..012}.tar": "there are no training images at",
        "a-{010..008}.tar": "it must rise",
        "a-{0..999999999}.tar": "at most 10,000 numbers",
        "{0..999}/{0..999}.tar": "more than 10,000 tars",
    }.items():
        with pytest.raises(CarvError, match=words):
            FolderImages(tmp_path / pattern, SIZE)


def test_no_member_of_a_tar_becomes_a_path(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    write(secret, 5)
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    (tmp_path / "in").mkdir()
    device = tarfile.TarInfo("device.png")
    device.type = tarfile.CHRTYPE
    harm: list[tuple[str | tarfile.TarInfo, bytes]] = [
        (str(secret), encoded(1)), ("../secret.png", encoded(2)), ("a/../../b.png", encoded(2)),
        (link("link.png", str(secret)), b""), (link("hard.png", "good.png", tarfile.LNKTYPE), b""), (device, b""),
        ("inner.tar", inner.getvalue()), ("good.png", encoded(3)), ("good.png", encoded(4)), ("big.txt", b"x" * 2**21),
        ("big.png", encoded(6)),
    ]  # fmt: skip
    write_tar(tmp_path / "in" / "x.tar", harm)
    before = sorted(tmp_path.rglob("*"))
    images = FolderImages(tmp_path / "in", SIZE)
    assert content(images) == {"x.tar/good.png": ""}
    assert np.array_equal(images.image(0), pixels(4))
    reasons = dict(images.report.left_out)
    kinds = {name.removeprefix("x.tar/"): reason for name, reason in reasons.items()}
    outside, odd = "has a name that leads outside of its tar", "is a link, a device or a sparse file in its tar"
    assert kinds == {
        f"{secret}": outside, "../secret.png": outside, "a/../../b.png": outside, "link.png": odd, "hard.png": odd,
        "device.png": odd, "inner.tar": "is an archive in a tar; unpack it",
        "good.png": "is in the tar twice, and the last one counts",
        "big.png": "has a caption that cannot be read: has a caption of more than 1 MiB",
    }  # fmt: skip
    assert sorted(tmp_path.rglob("*")) == before


def test_of_a_tar_that_is_cut_off_the_whole_members_are_read(tmp_path: Path) -> None:
    write_tar(tmp_path / "whole.tar", [(f"{i}.png", encoded(i)) for i in range(3)])
    data = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "whole.tar").unlink()
    (tmp_path / "cut.tar").write_bytes(data[: 2 * (512 + 1024) + 700])
    (tmp_path / "words.tar").write_text("no tar")
    images = FolderImages(tmp_path, SIZE)
    assert list(content(images)) == ["cut.tar/0.png", "cut.tar/1.png"]
    reasons = dict(images.report.left_out)
    assert reasons["cut.tar/2.png"] == "is cut off"
    assert reasons["words.tar"].startswith("is no whole tar")


def test_a_tar_that_is_damaged_in_the_middle_says_so(tmp_path: Path) -> None:
    def damaged(name: str, field: slice, value: bytes) -> None:
        data = bytearray((tmp_path / "whole").read_bytes())
        header = memoryview(data)[512 + 1024 :][:512]  # of the second member
        header[field] = value
        if field.start == 124:
            header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
        (tmp_path / name).write_bytes(data)

    write_tar(tmp_path / "whole", [(f"{i}.png", encoded(i)) for i in range(3)])
    damaged("a.tar", slice(150, 152), b"77")
    damaged("b.tar", slice(124, 136), (2**96 - 1).to_bytes(12, "big"))
    (tmp_path / "c.tar").write_bytes((tmp_path / "whole").read_bytes()[:1700])
    images = FolderImages(tmp_path, SIZE)
    assert list(content(images)) == ["a.tar/0.png", "b.tar/0.png", "c.tar/0.png"]
    assert dict(images.report.left_out) == {
        "a.tar": "is no whole tar (no header at byte 1,536); what stands before is read",
        "b.tar": "is no whole tar (1.png has -1 bytes); what stands before is read",
        "c.tar": "is no whole tar (no header at byte 1,536); what stands before is read",
    }


def test_a_header_that_claims_much_memory_is_not_read(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("0.png", encoded(0))])
    good = (tmp_path / "a.tar").read_bytes()[: 512 + 1024]
    claim = tarfile.TarInfo("x")
    claim.type, claim.size = tarfile.XHDTYPE, 2**33
    with open(tmp_path / "a.tar", "wb") as handle:
        handle.write(good + claim.tobuf(tarfile.GNU_FORMAT))
        handle.truncate(2**33 + 10_000)  # sparse: nothing of it is on the disk
    images = FolderImages(tmp_path, SIZE)
    assert list(content(images)) == ["a.tar/0.png"]
    assert "a header of" in dict(images.report.left_out)["a.tar"]


def test_what_was_read_once_is_known_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        write(tmp_path / "in" / f"{i}.png", i % 2)
    Image.fromarray(pixels(7, 4)).save(tmp_path / "in" / "3.png")
    known = tmp_path / "known.npy"
    first = FolderImages(tmp_path / "in", SIZE, known=known)
    read: list[str] = []

    def counted(data: bytes, name: str, *more: object) -> object:
        read.append(Path(name).name)
        return model_image(data, name, *more)  # type: ignore[arg-type]

    monkeypatch.setattr("carv_3d.attribution.folder_images.model_image", counted)
    write(tmp_path / "in" / "4.png", 8)
    again = FolderImages(tmp_path / "in", SIZE, known=known)
    assert read == ["4.png"]
    assert again.report.duplicates == first.report.duplicates == [("2.png", "0.png")]
    assert again.report.on_white == first.report.on_white == 1
    assert [again.digest(i) for i in range(4)] == [first.digest(i) for i in range(4)]
    read.clear()
    assert len(FolderImages(tmp_path / "in", SIZE, resize=True, known=known)) == 5  # read otherwise: nothing is known
    assert sorted(set(read)) == ["0.png", "1.png", "3.png", "4.png"]
    known.write_bytes(b"damaged")
    assert len(FolderImages(tmp_path / "in", SIZE, known=known)) == 5
