"""The project's language: the field's words (docs/GLOSSARY.md), and one claim a sentence."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "custom/threestudio-carv/README.md"]
PAGES += ["carv_3d/tiny/weights/README.md", "carv_3d/tiny/weights_128/README.md"]
PAGES += sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("**/*.md"))

# What this project once said, and what the field says.
REPLACED = {
    r"dear(er|est)?|dearness": "expensive",
    r"(light|heavy) (default )?(scene|one)": "voxel or hash-grid configuration",
    r"earlier weights": "a version",
    r"unet_rows|rows of the UNet|UNet rows": "NFE",
    r"way out|remed(y|ies)": "fix",
    r"embedded (host|teacher|runner)": "built-in trainer",
    r"no_text": "uncond",
    r"judge[sd]?": "classifier",
    r"(un)?seen pairs?": "training or held-out combinations",
    r"in turns": "interleaved",
    r"own clock": "training time",
    r"verdicts?": "correct",
    r"go(es|ing)? on with|gone on with|take[ns]? up": "resume",
    r"hangs? on": "depend on",
    r"foretell?(s|er)?|foretold": "predict",
    r"spoil(s|ed)?|gone blind|blind steps?": "non-finite, skipped",
    r"dear part": "expensive part",
}
# As above, in names as well ("_" counts as a space).
REPLACED_IN_NAMES = {
    r"told|tells?|telling": "given, called, means",
    r"beside": "next to, besides",
    r"pictures?": "image",
    r"go(es|ing)? on|gone on|went on": "resume, continue",
    r"stud(y|ies)|wanted": "benchmark, target",
    r"blind|unseen|students?": "non-finite, held out, generator or LoRA score",
    r"in turns|own clock|taken up|hangs? on|way out": "interleaved, training time, resumed, depend on, fix",
}
# Variables say what they hold, and a function's name is a noun or a verb: not `told`, not `run_of`.
VARIABLES = r"told|found|one|mine|wanted|of_\w+|\w+_of"
# The field's or carv-tiny's own: captions that it was taught.
ALLOWED = {"carv_3d/tiny/vocabulary.py": "a picture of a", "tests/tiny/test_vocabulary.py": "a picture of a"}
# Where the old words stand as such: names and columns of version 0.1.0, and a file that a test damages.
QUOTES = {
    "tests/test_words.py", "docs/GLOSSARY.md", "carv_3d/moved.py", "carv_3d/io/tables.py", "carv_3d/runs/checkpoint.py",
    "tests/io/test_tables.py", "tests/compare/test_reading.py",
    "tests/test_public_face.py", "tests/runs/test_checkpoint.py",
    "benchmarks/mutants/resuming.yaml", "benchmarks/regression_version.py",
}  # fmt: skip


def sources() -> list[str]:
    """Every tracked text of the project's own."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    listed = done.stdout.split("\n")
    return [f for f in listed if f.endswith((".py", ".md", ".yaml", ".sh", ".toml")) and f not in QUOTES]


@pytest.mark.parametrize("word", [*REPLACED, *REPLACED_IN_NAMES])
def test_the_fields_word_is_used(word: str) -> None:
    pattern = re.compile(rf"(?<![\w-])(?:{word})(?![\w-])", re.IGNORECASE)
    old = []
    for name in sources():
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1):
            spaced = line.replace(ALLOWED.get(name, "\0"), "").replace("_", " ")
            if pattern.search(spaced if word in REPLACED_IN_NAMES else line):
                old.append(f"{name}:{number}: {line.strip()[:90]}")
    assert not old, f"write {(REPLACED | REPLACED_IN_NAMES)[word]!r} instead:\n" + "\n".join(old)


def assigned(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of every variable, argument and function, tests and the fields of a class apart."""
    fields = {id(item.target) for c in ast.walk(tree) if isinstance(c, ast.ClassDef) for item in c.body
              if isinstance(item, ast.AnnAssign)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in fields:
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("test_"):
            yield node.lineno, node.name


def test_variables_say_what_they_hold() -> None:
    old = [
        f"{file}:{line}: {name}"
        for file in sources()
        if file.endswith(".py")
        for line, name in assigned(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        if re.fullmatch(VARIABLES, name)
    ]
    assert not old, "name these for what they hold:\n" + "\n".join(old)


def sentences(text: str) -> list[str]:
    """The sentences of a Markdown page: code, tables, headings, images and HTML apart; a list item ends one."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    kept: list[str] = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line for line in block.splitlines() if not re.match(r"\s*(\||#|!\[|<|    \S)", line)]
        kept += re.split(r"\n(?=\s*(?:[-*]|\d+\.)\s)", "\n".join(lines))
    plain = [re.sub(r"`[^`]*`", "code", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", block)) for block in kept]
    parts = [part for block in plain for part in re.split(r"(?<=[.!?:;])\s+(?=[A-Z`\"'(]|code)", block)]
    return [part for part in parts if len(part.split()) > 2]


@pytest.mark.parametrize("page", PAGES)
def test_a_sentence_says_one_thing(page: str) -> None:
    parts = sentences((ROOT / page).read_text(encoding="utf-8"))
    mean = sum(len(s.split()) for s in parts) / max(1, len(parts))
    longest = sorted(parts, key=lambda s: -len(s.split()))[:3]
    assert mean < 18, f"{page}: {mean:.1f} words a sentence; the longest: {longest}"
