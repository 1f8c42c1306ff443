"""The notebooks of examples/ run from top to bottom, and show what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "examples"


def printed(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a notebook, and return all that its cells print."""
    import nbclient
    import nbformat

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(folder))
    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    where = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources=where).execute()
    return "".join(out.get("text", "") for cell in book.cells for out in cell.get("outputs", []))


def number(words: str, text: str) -> float:
    return float(re.search(rf"{words} (-?\d+\.\d+)", text)[1])


def test_the_variance_shrinks_and_the_mean_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed("variance_shrinks", tmp_path, monkeypatch)
    assert number("largest distance of a mean from the truth:", text) < 3
    assert number("at K = 8 the last method has", text) > 1.4


def test_a_pair_has_less_variance_than_two_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed("compare_two", tmp_path, monkeypatch)
    two, pair = (float(re.search(rf"{name}: variance ([\d.e+-]+),", text)[1]) for name in ("two draws", "one pair"))
    assert pair < 0.85 * two


def test_each_notebook_is_tested_and_listed() -> None:
    readme, tested = (NOTEBOOKS / "README.md").read_text(encoding="utf-8"), Path(__file__).read_text(encoding="utf-8")
    names = [p.stem for p in NOTEBOOKS.glob("*.ipynb")]
    assert len(names) == 2
    for name in names:
        assert f"`{name}.ipynb`" in readme
        assert f'printed("{name}"' in tested
