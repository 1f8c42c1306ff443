"""Gradients of images that stay are kept when a folder of training images changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from carv_3d.attribution import FeatureMaker
from carv_3d.cli import main as cli


def save(path: Path, seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(array).save(path)


def test_gradients_of_images_that_stayed_are_kept(
    sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CARV_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data"
    data.mkdir()
    for i in range(6):
        save(data / f"{i}.png", i)
    made: list[str] = []
    make = FeatureMaker.features

    def counted(self: FeatureMaker, keys: list[str], *more: Any) -> torch.Tensor:
        made.extend(keys)
        return make(self, keys, *more)

    monkeypatch.setattr(FeatureMaker, "features", counted)

    def gradients(name: str, *more: str) -> list[str]:
        made.clear()
        words = ["attribute", str(data / "1.png"), "--model", str(sd_folder), "--training-images", str(data)]
        assert cli.main([*words, "num_draws=4", "query_draws=16", "dim=64", "--out", name, *more]) == 0
        return [key for key in made if key.endswith(".png")]

    assert gradients("first", "--items", "3") == ["0.png", "1.png", "2.png"]
    assert gradients("more") == ["3.png", "4.png", "5.png"]
    (data / "5.png").unlink()
    assert gradients("one less") == []
    save(data / "00.png", 9)
    (data / "2.txt").write_text("a blue cup")
    assert gradients("one added, one with another caption") == ["00.png", "2.png"]
    assert "4 of 6 gradients are those of an earlier query" in capsys.readouterr().out
