"""A table of pytest's results, a line for each file of tests: `table.py STACK.xml ...`, written by --junitxml.

Below it stands why tests were skipped.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

WORDS = {"failure": "failed", "error": "failed", "skipped": "skipped"}


def counts(path: Path) -> dict[str, Counter[str]]:
    """By file of tests: how many passed, failed and were skipped."""
    out: dict[str, Counter[str]] = {}
    for case in ElementTree.parse(path).iter("testcase"):
        kinds = {WORDS[child.tag] for child in case if child.tag in WORDS}
        kind = "failed" if "failed" in kinds else next(iter(kinds), "passed")
        name = case.get("classname", "").rpartition(".")[2]
        out.setdefault(name, Counter())[kind] += 1
    return out


def reasons(path: Path) -> Counter[str]:
    """Why tests were skipped, and how many for each reason."""
    skipped = ElementTree.parse(path).iterfind(".//testcase/skipped")
    return Counter(each.get("message", "no reason") for each in skipped)


def table(paths: list[Path]) -> str:
    """Markdown: files of tests down, stacks across."""
    results = {path.stem: counts(path) for path in paths if path.exists()}
    lines = ["| tests | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for name in sorted({name for each in results.values() for name in each}):
        cells = (each.get(name, Counter()) for each in results.values())
        shown = (", ".join(f"{n} {kind}" for kind, n in sorted(cell.items())) or "none" for cell in cells)
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    for path in filter(Path.exists, paths):
        lines += [f"skipped, {path.stem}: {count}, {why}" for why, count in sorted(reasons(path).items())]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table([Path(word) for word in sys.argv[1:]]))
