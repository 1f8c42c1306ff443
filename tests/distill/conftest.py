"""Fixtures of `carv distill`: a folder to be in, and a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from distill_command import words

from carv_3d.cli import main as cli

PROMPTS = "a red mug\n\n  a blue tree \n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, prompts next to it."""
    (tmp_path / "here").mkdir()
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def four_steps(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with its prompts next to it. Read only: `whole` is a copy."""
    place = tmp_path_factory.mktemp("distilled")
    (place / "prompts.txt").write_text(PROMPTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WORLD_SIZE", raising=False)
        assert cli.main(words(place, sd_folder, "steps=4", "--out", str(place / "whole"))) == 0
    return place


@pytest.fixture
def whole(four_steps: Path, place: Path) -> Path:
    """A run of four steps, as if it had been begun here."""
    shutil.copytree(four_steps / "whole", "whole")
    config = Path("whole/config.yaml")
    config.write_text(config.read_text().replace(str(four_steps), str(place)))
    return Path("whole")
