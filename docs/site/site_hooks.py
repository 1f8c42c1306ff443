"""What the site adds to mkdocs: pages from elsewhere in the repository, pages made from the code, MathML, and checks.

mkdocs calls the functions `on_...`. A warning from here is an error under `mkdocs build --strict`.
"""

from __future__ import annotations

import ast
import html
import importlib
import io
import logging
import os
import posixpath
import re
from contextlib import redirect_stdout, suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
log = logging.getLogger("mkdocs.site")

# Pages that live outside of docs/: their place in the repository is their place below repository/ in the site.
OUTSIDE = (
    "CONTRIBUTING.md", "CHANGELOG.md", "custom/threestudio-carv/README.md", "carv_3d/tiny/weights/README.md",
    "carv_3d/tiny/weights_128/README.md",
)  # fmt: skip
# Packages of the Python reference that come first; the others follow by name. The commands' own parts are no library.
FIRST = ("core", "objectives", "guidance", "teachers", "scenes", "attribution", "distill")
NO_LIBRARY = {"cli", "config", "io", "report", "runs", "tiny"}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def on_config(config: Any) -> Any:
    """Put a page of every package behind the overview of the reference, and pages that mkdocs.yml has not last."""
    reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    python = next(entry["Python"] for entry in reference if "Python" in entry)
    python += [{f"carv_3d.{name}": f"reference/{name}.md"} for name in packages()]
    more = next(entry["More"] for entry in config.nav if "More" in entry)
    more += unnamed(config.nav, sorted(p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")))
    return config


def unnamed(nav: Any, pages: list[str]) -> list[str]:
    """The pages that a navigation does not name."""
    if isinstance(nav, str):
        return [page for page in pages if page != nav]
    for part in nav.values() if isinstance(nav, dict) else nav:
        pages = unnamed(part, pages)
    return pages


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are no files of docs/."""
    from mkdocs.structure.files import File

    made = {f"repository/{name}": (ROOT / name).read_text(encoding="utf-8") for name in OUTSIDE}
    made |= {"reference/commands.md": commands_page(), "reference/api.md": api_page()}
    made |= {f"reference/{name}.md": package_page(name) for name in packages()}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links as they are in the repository become links within the site."""
    uri = page.file.src_uri
    if uri.startswith("reference/"):
        return markdown
    place = uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}"
    return site_links(markdown, place)


def on_page_content(text: str, **given: Any) -> str:
    """Equations as MathML, which browsers show by themselves."""
    return with_mathml(text)


def on_post_build(config: Any) -> None:
    """Check what was built: nothing from the network, no link that leads nowhere."""
    for complaint in complaints(Path(config.site_dir)):
        log.warning(complaint)


def site_uri(place: str) -> str | None:
    """Where a file of the repository is in the site; None where it is not."""
    if place in OUTSIDE:
        return f"repository/{place}"
    return place.removeprefix("docs/") if place.startswith("docs/") else None


def site_links(markdown: str, place: str) -> str:
    """The links of a page of the repository, for its place in the site.

    Args:
        markdown: the page.
        place: its path in the repository.

    Returns:
        The page. Links to files that the site has are relative to it; of links to other files of the repository, the
        words remain.
    """
    here = posixpath.dirname(site_uri(place) or place)

    def moved(match: re.Match[str]) -> str:
        mark, words, target = match.groups()
        path, hash_mark, anchor = target.partition("#")
        if not path or urlsplit(target).scheme:
            return match[0]
        leads_to = posixpath.normpath(posixpath.join(posixpath.dirname(place), path))
        uri = site_uri(leads_to)
        if uri is not None:
            return f"{mark}[{words}]({posixpath.relpath(uri, here or '.')}{hash_mark}{anchor})"
        return words if not mark and (ROOT / leads_to).exists() else match[0]

    fences = re.split(r"(^```.*?^```)", markdown, flags=re.M | re.S)
    return "".join(part if part.startswith("```") else LINK.sub(moved, part) for part in fences)


def with_mathml(text: str) -> str:
    """The page with each equation of pymdownx.arithmatex as MathML."""

    def converted(match: re.Match[str]) -> str:
        from latex2mathml.converter import convert

        inline = match[1] == "span"
        latex = html.unescape(match[2]).strip()
        latex = latex.removeprefix("\\(" if inline else "\\[").removesuffix("\\)" if inline else "\\]")
        return convert(latex.strip(), display="inline" if inline else "block")

    return re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', converted, text, flags=re.S)


def commands_page() -> str:
    """Every command's own `--help`."""
    from carv_3d.cli.main import COMMANDS

    parts = ["# Commands\n\nEach is what `carv COMMAND --help` shows. [Options](../OPTIONS.md) has the options.\n"]
    os.environ["COLUMNS"] = "100"
    for name in COMMANDS:
        module, shown = importlib.import_module(f"carv_3d.cli.{name}"), io.StringIO()
        with redirect_stdout(shown), suppress(SystemExit):
            module.main(["--help"])
        parts.append(f"## carv {name}\n\n```text\n{shown.getvalue().strip()}\n```\n")
    return "\n".join(parts)


def packages() -> list[str]:
    """Those of the Python reference, in order."""
    there = {p.parent.name for p in (ROOT / "carv_3d").glob("*/__init__.py")} - NO_LIBRARY
    return [*FIRST, *sorted(there - set(FIRST))]


def summary(package: str) -> str:
    """The first sentence of a package's docstring."""
    tree = ast.parse((ROOT / "carv_3d" / package / "__init__.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")


def api_page() -> str:
    """The public face of the package, and a table of its packages."""
    rows = [f"| [`carv_3d.{name}`]({name}.md) | {summary(name)} |" for name in packages()]
    table = "| package | what lives there |\n|---|---|\n" + "\n".join(rows)
    return f"# Python\n\n`import carv_3d` gives the names of its docstring. The packages:\n\n{table}\n\n::: carv_3d\n"


def package_page(package: str) -> str:
    """The modules of a package, each from its docstrings."""
    names = sorted(p.stem for p in (ROOT / "carv_3d" / package).glob("*.py") if not p.stem.startswith("_"))
    parts = [f"::: carv_3d.{package}.{name}\n" for name in names]
    return f"# carv_3d.{package}\n\n{summary(package)}\n\n" + "\n".join(parts)


class Page(HTMLParser):
    """What a built page loads, where its links lead, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.without_words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called at each tag."""
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.loads.append(values.get("href", ""))
        elif tag in ("script", "img", "iframe", "source", "video") and "src" in values:
            self.loads.append(values["src"])
        elif tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "img" and not values.get("alt"):
            self.without_words.append(values.get("src", ""))


def complaints(site: Path) -> list[str]:
    """What is wrong with a built site.

    Args:
        site: its folder.

    Returns:
        A sentence each: a script, style, font or image from the network, an absolute path, a file or an anchor that is
        not there, an image without a text in its place.
    """
    pages = {p: Page(p.read_text(encoding="utf-8")) for p in sorted(site.rglob("*.html")) if p.name != "404.html"}
    wrong = []
    for path, page in pages.items():
        name = path.relative_to(site)
        wrong += [f"{name}: the image {source} has no text in its place" for source in page.without_words]
        wrong += [f"{name} loads {x}" for x in page.loads if urlsplit(x).netloc or x.startswith("/")]
        for link in page.links + [x for x in page.loads if not urlsplit(x).netloc]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir() or not target.exists():
                wrong.append(f"{name}: the link {link} leads nowhere")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                wrong.append(f"{name}: the link {link} names no place in {target.name}")
    for style in sorted(site.rglob("*.css")):
        for source in re.findall(r"(?:@import|url\()\s*['\"]?(https?:[^'\")\s]+)", style.read_text(encoding="utf-8")):
            wrong.append(f"{style.relative_to(site)} loads {source}")
    return wrong
