"""Fixtures of `carv distill`: a folder to be in, and a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from distill_command import words

from carv_3d.cli import main as cli


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, prompts beside it."""
    (tmp_path / "here").mkdir()
    (tmp_path / "prompts.txt").write_text("a red mug\n\n  a blue tree \n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return tmp_path


@pytest.fixture
def whole(sd_folder: Path, place: Path, capsys: Any) -> Path:
    """A run of four steps."""
    assert cli.main(words(place, sd_folder, "steps=4", "--out", "whole")) == 0
    assert "Done: the one-step model is in whole/model" in capsys.readouterr().out
    return Path("whole")
