"""Images and films: bytes, sheets, and files that read back as what was written."""

from __future__ import annotations

import os
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from carv_3d.errors import CarvError
from carv_3d.io.images import contact_sheet, to_uint8, write_gif, write_mp4, write_png


def flat(values: list[int], height: int = 2, width: int = 3) -> np.ndarray:
    """Images (N, height, width, 3), each of one value."""
    return np.array(values, np.uint8)[:, None, None, None] * np.ones((1, height, width, 3), np.uint8)


def test_bytes_are_rounded_and_cut_off() -> None:
    values = torch.tensor([-0.5, 0.0, 0.4 / 255, 0.6 / 255, 0.5, 1.0, 1.5, float("nan"), float("inf")])
    assert to_uint8(values.view(1, 1, -1, 1)).ravel().tolist() == [0, 0, 0, 1, 128, 255, 255, 0, 255]
    assert to_uint8(torch.zeros(1, requires_grad=True)).dtype == np.uint8


def test_a_sheet_is_filled_row_by_row_with_white_between_and_behind() -> None:
    sheet = contact_sheet(flat([10, 20, 30, 40, 50]), columns=2, gap=1)
    assert sheet.shape == (3 * 2 + 2, 2 * 3 + 1, 3)
    assert sheet[0, [0, 4], 0].tolist() == [10, 20]
    assert sheet[3, [0, 4], 0].tolist() == [30, 40]
    assert sheet[6, [0, 4], 0].tolist() == [50, 255]
    assert (sheet[2] == 255).all()
    assert (sheet[:, 3] == 255).all()
    assert contact_sheet(flat([1, 2]), columns=2, gap=0).shape == (2, 6, 3)


def test_a_sheet_is_enlarged_by_its_scale() -> None:
    sheet = contact_sheet(flat([10, 20]), columns=1, gap=2, scale=3)
    assert sheet.shape == (2 * 6 + 2, 9, 3)
    assert (sheet[:6] == 10).all()
    assert (sheet[6:8] == 255).all()
    assert (sheet[8:] == 20).all()


def test_a_png_reads_back(tmp_path: Path) -> None:
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    write_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), image)
    assert os.listdir(tmp_path) == ["a.png"]
    with pytest.raises(CarvError, match="cannot write"):
        write_png(tmp_path / "none" / "a.png", image)


@pytest.mark.parametrize(("fps", "milliseconds"), [(10, 100), (30, 30), (100, 20)])
def test_a_gif_has_its_frames_colors_pace_and_loop(fps: int, milliseconds: int, tmp_path: Path) -> None:
    write_gif(tmp_path / "a.gif", flat([0, 120, 250], 16, 16), fps)
    film = Image.open(tmp_path / "a.gif")
    assert (film.n_frames, film.size) == (3, (16, 16))  # type: ignore[attr-defined]
    assert (film.info["duration"], film.info["loop"]) == (milliseconds, 0)
    for index, value in enumerate((0, 120, 250)):
        film.seek(index)
        assert abs(int(np.asarray(film.convert("RGB"))[8, 8, 0]) - value) <= 2


def test_a_film_has_its_frames_pace_and_even_sides(tmp_path: Path) -> None:
    frames = flat([30, 120, 220], 33, 47)
    frames[:, :, -1] = 250
    write_mp4(tmp_path / "a.mp4", frames, fps=5)
    read = iio.imread(tmp_path / "a.mp4")
    assert read.shape == (3, 34, 48, 3)
    assert [abs(int(read[i, 10, 10, 0]) - v) <= 6 for i, v in enumerate((30, 120, 220))] == [True] * 3
    assert (read[1, :, 47].astype(int).mean(0) > 200).all()  # the last column again
    assert iio.immeta(tmp_path / "a.mp4")["fps"] == 5


def test_each_side_of_a_film_is_padded_by_itself(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", flat([30, 120], 32, 47), fps=5)
    assert iio.imread(tmp_path / "a.mp4").shape == (2, 32, 48, 3)


def test_without_ffmpeg_a_film_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise RuntimeError("No ffmpeg exe could be found")

    monkeypatch.setattr("imageio.v2.get_writer", missing)
    with pytest.raises(CarvError, match=r"a\.mp4 was not made: ffmpeg is missing or failed \(No ffmpeg exe"):
        write_mp4(tmp_path / "a.mp4", flat([1]), 5)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("program", "cause"),
    [("nowhere", "No such file"), ("/bin/false", ""), (".", "Permission denied"), ("/bin/true", "")],
)
def test_a_broken_ffmpeg_is_named_with_its_variable(
    program: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", program)
    sentence = rf"a\.mp4 was not made: ffmpeg is missing or failed \(.*{cause}.*\); IMAGEIO_FFMPEG_EXE names {program}:"
    with pytest.raises(CarvError, match=sentence):
        write_mp4(tmp_path / "a.mp4", flat([1, 2, 3]), 5)
    assert os.listdir(tmp_path) == []
