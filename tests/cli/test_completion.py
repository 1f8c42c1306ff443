"""Completion: a shell asks with what is typed so far, and is given commands and flags."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import loaded_by

from carv_3d.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]


def completed(line: str, folder: Path) -> list[str]:
    """What the shell is given for a line."""
    answer = folder / "answer"
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line,
        "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
    }  # fmt: skip
    code = "from carv_3d.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return [word.strip() for word in answer.read_text(encoding="utf-8").split("\n")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("carv ge", {"generate"}),
        ("carv generate --pro", {"--prompts"}),
        ("carv generate --engine ", {"local", "ray"}),
        ("carv runs --s", {"--state"}),
        ("carv doctor --prec", {"--precision"}),
    ],
)
def test_commands_and_flags_are_completed(line: str, words: set[str], tmp_path: Path) -> None:
    assert words <= set(completed(line, tmp_path))


def test_every_command_is_known_and_no_torch_is_loaded(tmp_path: Path) -> None:
    assert set(COMMANDS) <= set(completed("carv ", tmp_path))
    imports = "from carv_3d.cli import completion, main; completion.whole_parser(main.COMMANDS)"
    assert loaded_by(imports, "torch", "diffusers") == set()
