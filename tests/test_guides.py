"""The guides: their Python runs as it stands, and their commands are ones that the commands take."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from carv_3d.attribution.request import AttributeOptions
from carv_3d.cli.main import COMMANDS
from carv_3d.compare.methods import parse_methods
from carv_3d.distill.options import DistillOptions
from carv_3d.generate.config import load_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = {str(p.relative_to(ROOT / "docs")): p.read_text(encoding="utf-8")
         for p in (ROOT / "docs" / "index.md", *sorted((ROOT / "docs" / "guides").glob("*.md")))}  # fmt: skip


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def commands(text: str) -> list[list[str]]:
    """The words of every `carv ...` in a page, without what runs it."""
    lines = "\n".join(blocks(text, "sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    words = [w[1:] if w[:1] == ["./install.sh"] else w for w in words]
    words = [["carv", *w[w.index("carv_3d.cli") + 1 :]] if "carv_3d.cli" in w else w for w in words]
    return [w[1:] for w in words if w[:1] == ["carv"]]


COMMAND_LINES = [(page, words) for page, text in PAGES.items() for words in commands(text)]
SCENE_COMMANDS = ("generate", "variance", "compare")


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if blocks(text, "python")])
def test_the_python_of_a_guide_runs_from_top_to_bottom(page: str) -> None:
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for code in blocks(PAGES[page], "python"):
        exec(compile(code, page, "exec"), names)


def test_the_guides_show_every_command_that_makes_something() -> None:
    shown = {words[0] for _, words in COMMAND_LINES}
    assert {*SCENE_COMMANDS, "attribute", "distill", "doctor"} <= shown <= set(COMMANDS)
    assert len(COMMAND_LINES) > 20


@pytest.mark.parametrize(("page", "words"), COMMAND_LINES, ids=[f"{p}: {' '.join(w)[:60]}" for p, w in COMMAND_LINES])
def test_the_commands_of_a_guide_are_taken(page: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    name, *rest = words
    module = importlib.import_module(f"carv_3d.cli.{name}")
    if name in ("doctor", "threestudio"):  # arguments of their own
        return
    variance = name == "distill" and rest[:1] == ["variance"]
    args = (module.variance_parser if variance else module.parser)().read(rest[1:] if variance else rest)
    if args is None:
        assert rest[-1] == "--help"
    elif name == "compare" and "methods" not in args:
        assert len(args.given) >= 2  # runs, under names
    elif name in SCENE_COMMANDS:
        config = getattr(args, "config", None)
        made = parse_methods(args.methods) if name == "compare" and "methods" in args else []
        if name == "variance":
            assert len(args.words) == 1
            config = args.words[0] if not args.words[0].startswith("outputs/") else None
        for given in (args.options, *(m.overrides for m in made)):
            load_config(None if config is None else Path(config), list(given))  # raises for an unknown option
    elif name == "distill":
        assert {o.partition("=")[0] for o in args.options} <= set(DistillOptions.declared())
    elif name == "attribute":
        assert {o.partition("=")[0] for o in args.options} <= set(AttributeOptions.declared())
