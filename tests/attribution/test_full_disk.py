"""A disk that fills up while the outputs are written leaves nothing in the way of the same command."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from carv_3d.attribution import command
from carv_3d.cli import main as cli


def test_a_disk_that_fills_up_at_the_end_leaves_nothing_in_the_way(
    sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"data/{i}.png")
    small = ["num_draws=4", "query_draws=16", "dim=16", "--method", "cosine", "--store", "store", "--out", "out"]
    words = ["attribute", "data/0.png", "--model", str(sd_folder), "--training-images", "data", *small]
    real = command.write_atomic

    def full(path: Path, payload: str) -> None:
        if path.name == "settings.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, payload)

    with monkeypatch.context() as patch:
        patch.setattr(command, "write_atomic", full)
        assert cli.main(words) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert not list(Path("out").glob("*"))
    assert cli.main(words) == 0
    assert sorted(os.listdir("out")) == ["report.html", "scores.csv", "settings.json"]
