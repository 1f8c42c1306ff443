"""`carv options` and docs/OPTIONS.md, which are made from the option classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from carv_3d.cli.main import main as cli
from carv_3d.cli.options import TABLES, markdown

DOCS = Path(__file__).parents[2] / "docs" / "OPTIONS.md"


def test_the_page_of_options_is_current() -> None:
    assert DOCS.read_text(encoding="utf-8") == markdown(), "run: carv options --markdown > docs/OPTIONS.md"


def test_options_are_listed_and_selected(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["options", "generate", "num_draws"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "system.guidance.num_draws = 2  (a whole number from 1 to 2^40, or auto)",
        "    K, draws of (t, eps) per render.",
    ]
    assert cli(["options", "distill", "fake"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if " = " in line]
    assert sorted(names) == ["fake_draws", "fake_lr", "fake_updates"]
    for name in (*TABLES, "variance", "compare"):
        assert cli(["options", name]) == 0
        assert "stratify = render  (one of none, render" in capsys.readouterr().out


def test_what_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["options", "zzz"]) == 2
    assert "there are no options of 'zzz'; there are: generate, distill" in capsys.readouterr().err
    assert cli(["options", "distill", "zzz"]) == 2
    assert "no option of distill contains 'zzz'" in capsys.readouterr().err
    assert cli(["options", "--markdown", "x"]) == 2
    assert "--markdown lists all options; leave 'x' out" in capsys.readouterr().err
    assert cli(["options", "distill", "lr", "x"]) == 2
    assert "carv options takes a command and a word; leave 'x' out" in capsys.readouterr().err
