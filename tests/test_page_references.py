"""What the pages name in the repository is there: files and tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "examples/README.md")]
PAGES += [ROOT / "custom/threestudio-carv/README.md", *(ROOT / "carv_3d" / "tiny").glob("weights*/README.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
FOLDERS = r"(?:benchmarks|tests|carv_3d|docs|examples|custom|\.ci)"


def missing(text: str) -> list[str]:
    """Words between backquotes that name what is not there."""
    gone = []
    for words in re.findall(r"`([^`]+)`", text):
        for path, test in re.findall(rf"(?<![\w./-])({FOLDERS}/[\w./-]*\w)(?:::(\w+))?", words):
            file = ROOT / path
            if not file.exists() or (test and f"def {test}(" not in file.read_text(encoding="utf-8")):
                gone.append(f"{path}::{test}" if test else path)
    return gone


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page: Path) -> None:
    assert missing(page.read_text(encoding="utf-8")) == []


def test_what_is_gone_is_noticed() -> None:
    text = "`tests/test_readme.py::test_no_more`, `python benchmarks/gone.py --x` and `tests/test_readme.py`"
    assert missing(text) == ["tests/test_readme.py::test_no_more", "benchmarks/gone.py"]
