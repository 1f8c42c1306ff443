"""The site's hooks: links of the repository, equations, pages from the code, and what a built site must not hold."""

from __future__ import annotations

import html
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import site_hooks as hooks
from browser import CHROMIUM, browser

from carv_3d.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
EXTENSION = "custom/threestudio-carv/README.md"


@pytest.mark.parametrize(
    ("place", "text", "expected"),
    [
        ("docs/THREESTUDIO.md", f"[x](../{EXTENSION})", f"[x](repository/{EXTENSION})"),
        (EXTENSION, "![t](../../docs/green-tree.png)", "![t](../../../green-tree.png)"),
        (EXTENSION, "[d](../../docs/THREESTUDIO.md#options)", "[d](../../../THREESTUDIO.md#options)"),
        ("docs/results/README.md", "[v](variance.md)", "[v](variance.md)"),
        ("CONTRIBUTING.md", "run the [set-up](install.sh) first", "run the set-up first"),
        ("CONTRIBUTING.md", "[gone](no-such-file.md)", "[gone](no-such-file.md)"),
        ("docs/index.md", "[p](https://arxiv.org/a) [h](#here)", "[p](https://arxiv.org/a) [h](#here)"),
        ("docs/index.md", "```\n[x](../install.sh)\n```\n", "```\n[x](../install.sh)\n```\n"),
    ],
)  # fmt: skip
def test_links_of_the_repository_become_links_of_the_site(place: str, text: str, expected: str) -> None:
    assert hooks.site_links(text, place) == expected


def test_equations_are_mathml() -> None:
    inline = hooks.with_mathml('<p>at <span class="arithmatex">\\(a &lt; K\\)</span>.</p>')
    assert inline.startswith("<p>at <math")
    assert "<mi>K</mi>" in inline
    assert "&#x0003C;" in inline  # what was escaped once in the page is escaped once in the equation
    assert "amp;" not in inline
    block = hooks.with_mathml('<div class="arithmatex">\\[\\frac{1}{K}\\]</div>')
    assert 'display="block"' in block
    assert "<mfrac>" in block


def test_every_command_has_its_help_on_one_page() -> None:
    page = hooks.commands_page()
    for name in COMMANDS:
        assert f"## carv {name}\n\n```text\nusage: carv {name}" in page


def test_the_reference_has_every_package_and_module() -> None:
    there = {p.parent.name for p in (ROOT / "carv_3d").glob("*/__init__.py")}
    assert set(hooks.packages()) == there - {"cli", "config", "io", "report", "runs", "tiny"}  # no library
    assert len(hooks.packages()) == len(set(hooks.packages()))
    assert "::: carv_3d.core.estimator\n" in hooks.package_page("core")
    assert "_raster" not in hooks.package_page("scenes")
    assert "| [`carv_3d.core`](core.md) | The estimator, on torch alone" in hooks.api_page()
    reference = {"Reference": [{"Options": "OPTIONS.md"}, {"Python": [{"Overview": "api.md"}]}]}
    config = hooks.on_config(SimpleNamespace(nav=[reference, {"More": ["how-it-works.md"]}]))
    (_, section) = config.nav[0]["Reference"]
    assert section["Python"][1:] == [{f"carv_3d.{n}": f"reference/{n}.md"} for n in hooks.packages()]
    more = config.nav[1]["More"]
    assert {"GLOSSARY.md", "guides/own-loop.md"} <= set(more)
    assert "OPTIONS.md" not in more
    assert more.count("how-it-works.md") == 1


def built(folder: Path, head: str = "", body: str = "") -> list[str]:
    (folder / "style.css").write_text("a { color: red }")
    (folder / "other.html").write_text('<h1 id="top">Other</h1>')
    (folder / "page.html").write_text(f"<html><head>{head}</head><body>{body}</body></html>")
    return hooks.complaints(folder)


@pytest.mark.parametrize(
    ("head", "body", "complaint"),
    [
        ('<script src="https://cdn.example/x.js"></script>', "", "page.html loads https://cdn.example/x.js"),
        ('<link rel="stylesheet" href="//fonts.example/css">', "", "page.html loads //fonts.example/css"),
        ("", '<img src="/logo.png" alt="a logo">', "page.html loads /logo.png"),
        ("", '<img src="style.css">', "page.html: the image style.css has no text in its place"),
        ("", '<a href="gone.html">x</a>', "page.html: the link gone.html leads nowhere"),
        ("", '<a href="other.html#down">x</a>', "page.html: the link other.html#down names no place in other.html"),
    ],
)
def test_a_built_page_needs_no_network_and_no_link_is_broken(
    head: str, body: str, complaint: str, tmp_path: Path
) -> None:
    assert complaint in built(tmp_path, head, body)


def test_a_page_that_opens_from_disk_has_no_complaint(tmp_path: Path) -> None:
    good = '<a href="other.html#top">x</a> <a href="https://arxiv.org">paper</a> <a href="#y" id="y">y</a>'
    assert built(tmp_path, '<link rel="stylesheet" href="style.css">', good) == []
    (tmp_path / "style.css").write_text('@import "https://fonts.example/css";')
    assert hooks.complaints(tmp_path) == ["style.css loads https://fonts.example/css"]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_equations_fit_a_telephone(tmp_path: Path) -> None:
    source = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    equations = re.findall(r"\$\$(.*?)\$\$", source, flags=re.S)
    text = hooks.with_mathml("".join(f'<div class="arithmatex">{html.escape(latex)}</div>' for latex in equations))
    style = (ROOT / "docs" / "site" / "style.css").read_text(encoding="utf-8")
    width = 390 - 2 * 16  # of a column of the theme, whose text has 16 pixels
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><style>{style}</style>'
    page = f'{head}<div class="md-typeset" style="font-size: 16px; width: {width}px">'
    (tmp_path / "page.html").write_text(page + text, encoding="utf-8")
    blocks = "[...document.querySelectorAll('math[display=block]')].map((m) => m.scrollWidth)"
    with browser(tmp_path / "profile") as tab:
        tab.open(tmp_path / "page.html", 390, 844)
        widths = tab.ask(blocks)
    assert len(widths) == len(equations) == 9
    assert max(widths) <= width
