"""What `carv attribute` says of images that it left out: on the terminal, on the page and in files."""

from __future__ import annotations

import csv
from pathlib import Path

import noise_images
import pytest
from noise_images import save

from carv_3d.cli import main as cli


def test_images_that_were_left_out_are_counted_and_listed(
    sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CARV_CACHE", str(tmp_path / "cache"))
    for i in range(4):
        save(tmp_path / "in" / f"{i}.png", i % 3)
    (tmp_path / "in" / "<b>.png").write_bytes(b"")
    (tmp_path / "in" / "metadata.csv").write_text("file_name,text\n1.png,a mug\n")
    words = noise_images.words("in/1.png", "in", sd_folder)
    assert cli.main([*words, "--out", "a"]) == 0
    output = capsys.readouterr().out
    assert "1 of 5 files left out (left_out.csv lists them). The first, <b>.png, is no image that can be read" in output
    assert "an earlier one: 1 (duplicates.csv lists them), the first is 3.png, with those of 0.png." in output
    scores = list(csv.DictReader(Path("a/scores.csv").read_text().splitlines()))
    assert {row["image"]: row["caption"] for row in scores} == {"0.png": "", "1.png": "a mug", "2.png": "", "3.png": ""}
    ((name, why),) = list(csv.reader(Path("a/left_out.csv").read_text().splitlines()))[1:]
    assert name == "<b>.png"
    assert why.startswith("is no image that can be read")
    assert Path("a/duplicates.csv").read_text().splitlines() == ["image,same_pixels_as", "3.png,0.png"]
    page = Path("a/report.html").read_text()
    assert "Files that were left out: 1</summary>" in page
    assert "&lt;b&gt;.png</td><td>is no image that can be read" in page
    assert "<td>3.png</td><td>0.png</td>" in page
    (tmp_path / "in" / "<b>.png").unlink()
    (tmp_path / "in" / "3.png").unlink()
    assert cli.main([*words, "--out", "b"]) == 0
    assert "left out" not in capsys.readouterr().out
    assert sorted(p.name for p in Path("b").iterdir()) == ["report.html", "scores.csv", "settings.json"]
