"""Strategies of hypothesis: a file's bytes, lines or tree with something odd in it.

Each takes what a good file holds and draws `Mutant`s: the new bytes (or a thing that is no regular file), what is odd,
and whether no reader can rightly take it.
"""

from __future__ import annotations

import copy
import json
import math
from typing import Any, NamedTuple

from fuzz_guard import SPECIALS
from hypothesis import strategies as st

DEEP = 10_000
DIGITS = 5_000


class Mutant(NamedTuple):
    """content: bytes, or one of SPECIALS. broken: whether no reader can rightly take it."""

    content: bytes | str
    note: str
    broken: bool = False


class Raw(NamedTuple):
    """JSON that Python would not write: numbers of many digits, deep nesting."""

    text: str

    def __deepcopy__(self, memo: Any) -> Raw:
        return self


ODD: dict[str, Any] = {
    "null": None,
    "true": True,
    "false": False,
    "-1": -1,
    "0": 0,
    "1": 1,
    "1.5": 1.5,
    "1e308": 1e308,
    "-1e308": -1e308,
    "NaN": math.nan,
    "Infinity": math.inf,
    "-Infinity": -math.inf,
    "2^31": 2**31,
    "2^63": 2**63,
    "-2^63": -(2**63),
    "10^12": 10**12,
    "''": "",
    "'x'": "x",
    "'nan'": "nan",
    "'1'": "1",
    "'../../x'": "../../x",
    "'/dev/zero'": "/dev/zero",
    "'<script>'": "<script>alert(1)</script>",
    "'NUL'": "a\0b",
    "'U+2028'": "a\u2028b",
    "a surrogate": "\ud800",
    "100,000 letters": "a" * 100_000,
    "[]": [],
    "[null]": [None],
    "[[]]": [[]],
    "[1, 2]": [1, 2],
    "['a']": ["a"],
    "{}": {},
    "{'a': 1}": {"a": 1},
    "{'': {}}": {"": {}},
    "list of 10,000": [0] * 10_000,
    f"integer of {DIGITS} digits": Raw("7" * DIGITS),
    f"nested {DEEP} deep": Raw("[" * DEEP + "]" * DEEP),
    f"objects {DEEP} deep": Raw('{"a":' * DEEP + "1" + "}" * DEEP),
}


@st.composite
def damaged(draw: Any, good: bytes, specials: bool = True) -> Mutant:
    """Bytes cut, flipped, doubled, put in another encoding; or no regular file at all."""
    kind = draw(
        st.sampled_from(("cut", "flip", "flips", "insert", "delete", "double", "text", *["special"] * specials))
    )
    at = draw(st.integers(0, max(0, len(good) - 1)))
    if kind == "cut":
        return Mutant(good[:at], f"cut at {at}")
    if kind in ("flip", "flips"):
        data = bytearray(good or b"\0")
        places = [at] if kind == "flip" else draw(st.lists(st.integers(0, len(data) - 1), min_size=2, max_size=20))
        for place in places:
            data[place] ^= draw(st.integers(1, 255))
        return Mutant(bytes(data), f"{kind} at {places[0]}")
    if kind == "insert":
        junk = draw(
            st.sampled_from((b"\0" * 8, b"\xff\xfe", b'"', b"\n", b"{", b"}", b",", b"9" * 400, b"\x1b[2J", b"%s"))
        )
        return Mutant(good[:at] + junk + good[at:], f"{junk[:8]!r} at {at}")
    if kind == "delete":
        return Mutant(good[:at] + good[at + draw(st.integers(1, 64)) :], f"bytes away at {at}")
    if kind == "double":
        return Mutant(good + good, "twice")
    if kind == "special":
        name = draw(st.sampled_from(SPECIALS))
        return Mutant(name, name, name not in ("<absent>", "<dangling link>", "</dev/null>"))
    encodings = {
        "empty": b"",
        "BOM": b"\xef\xbb\xbf" + good,
        "a byte no UTF-8 has": good[:at] + b"\xff" + good[at:],
        "NULs": b"\0" * 4096,
        "UTF-16": good.decode("utf-8", "replace").encode("utf-16"),
        "spaces": b" \n" * 4096,
        "CR LF": good.replace(b"\n", b"\r\n"),
        "one byte": b"\n",
        "a git-lfs pointer": b"version https://git-lfs.github",
    }
    note = draw(st.sampled_from(sorted(encodings)))
    return Mutant(encodings[note], note)


def _paths(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    out = [path] if path else []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:8]) if isinstance(tree, (list, tuple)) else ()
    for key, value in items:
        out += _paths(value, (*path, key))
    return out


@st.composite
def odd_tree(draw: Any, good: Any, odd: Any = ODD, most: int = 2) -> tuple[Any, str]:
    """A tree with one or two nodes replaced, taken away, renamed or moved; and what was done."""
    tree, notes = copy.deepcopy(good), []
    for _ in range(draw(st.integers(1, most))):
        paths = _paths(tree)
        if not paths or draw(st.integers(0, 29)) == 0:
            note = draw(st.sampled_from(sorted(odd)))
            return copy.deepcopy(odd[note]), f"all of it is {note}"
        *way, last = draw(st.sampled_from(paths))
        parent = tree
        for key in way:
            parent = parent[key]
        name, kind = ".".join(map(str, (*way, last))), draw(st.sampled_from(("replace", "replace", "delete", "rename")))
        if kind == "replace" or not isinstance(parent, dict):
            note = draw(st.sampled_from(sorted(odd)))
            if isinstance(parent, tuple):
                continue
            parent[last] = copy.deepcopy(odd[note])
            notes.append(f"{name} = {note}")
        elif kind == "delete":
            del parent[last]
            notes.append(f"no {name}")
        else:
            parent[f"{last}_x"] = parent.pop(last)
            notes.append(f"{name} renamed")
    return tree, "; ".join(notes) or "as it was"


def dumped(tree: Any) -> str:
    """JSON, with what is `Raw` as it stands."""
    raws: list[str] = []

    def mark(value: Any) -> Any:
        if isinstance(value, Raw):
            raws.append(value.text)
            return f"@raw{len(raws) - 1}@"
        if isinstance(value, dict):
            return {k: mark(v) for k, v in value.items()}
        return [mark(v) for v in value] if isinstance(value, (list, tuple)) else value

    text = json.dumps(mark(tree))
    for i, raw in enumerate(raws):
        text = text.replace(f'"@raw{i}@"', raw)
    return text


@st.composite
def json_file(draw: Any, good: bytes) -> Mutant:
    """A JSON file: an odd tree, a key twice, or damaged bytes."""
    tree = json.loads(good)
    kind = draw(st.sampled_from(("tree", "tree", "tree", "twice", "bytes")))
    if kind == "tree":
        new, note = draw(odd_tree(tree))
        text = dumped(new)
        return Mutant(text.encode("utf-8", "surrogatepass"), note, not isinstance(new, type(tree)))
    if kind == "twice" and isinstance(tree, dict) and tree:
        key = draw(st.sampled_from(sorted(tree)))
        return Mutant((json.dumps(tree)[:-1] + f", {json.dumps(key)}: 1}}").encode(), f"{key} twice", True)
    mutant = draw(damaged(good))
    return mutant._replace(broken=mutant.broken or not _is_json(mutant.content))


def _is_json(content: bytes | str) -> bool:
    if isinstance(content, str):
        return content in ("<absent>", "<dangling link>")
    try:
        json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return True


@st.composite
def yaml_file(draw: Any, good: bytes) -> Mutant:
    """A YAML file: an odd tree, what only YAML has, or damaged bytes."""
    import yaml

    tree = yaml.safe_load(good)
    kind = draw(st.sampled_from(("tree", "tree", "yaml", "bytes")))
    if kind == "tree":
        new, note = draw(odd_tree(tree))
        return Mutant(dumped(new).encode("utf-8", "surrogatepass"), note, not isinstance(new, dict) and bool(new))
    if kind == "bytes":
        return draw(damaged(good))
    laughs = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 9))
    texts = {
        "aliases without end": f"l0: &l0 [x]\n{laughs}",
        "a python tag": "a: !!python/object/apply:os.system ['touch canary']",
        "a tab": "a:\n\tb: 1",
        "two documents": "a: 1\n---\nb: 2",
        "a merge key": "a: &a {b: 1}\nc: {<<: *a}",
        "an interpolation": "seed: ${oc.env:HOME}",
        "a loop of interpolations": "seed: ${tag}\ntag: ${seed}",
        "a missing resolver": "seed: ${nothing:1}",
        "a loop of aliases": "a: &a [*a]",
        "a date": "seed: 2020-01-01",
        "a set": "seed: !!set {a, b}",
        "binary": "seed: !!binary YQ==",
        "a null key": "null: 1",
        "a list key": "[1, 2]: 3",
        "octal": "seed: 0o17",
        "sexagesimal": "seed: 1:30",
        "a number key": "1: 2",
        "a bool key": "true: 1",
        "???": "seed: ???",
    }
    note = draw(st.sampled_from(sorted(texts)))
    return Mutant(texts[note].encode(), note)


CELLS = (
    "",
    "nan",
    "inf",
    "-inf",
    "1e308",
    "-1",
    "0",
    "x",
    "1_000",
    "0x10",
    " 5",
    '"',
    '"5"',
    "1,5",
    "\0",
    "9" * 400,
    "1e-400",
    "<b>",
    "=1+1",
    "-0",
    "9" * 200_000,
)


@st.composite
def csv_file(draw: Any, good: bytes) -> Mutant:
    """A CSV: a cell, a column, a line that is odd, or damaged bytes."""
    lines = [line.split(",") for line in good.decode().splitlines()]
    kind = draw(st.sampled_from(("cell", "cell", "column", "header", "line", "swap", "bytes")))
    row, column = draw(st.integers(1, len(lines) - 1)), draw(st.integers(0, len(lines[0]) - 1))
    cell = draw(st.sampled_from(CELLS))
    if kind == "bytes":
        return draw(damaged(good))
    if kind == "cell":
        lines[row][column] = cell
    elif kind == "column":
        for line in lines[1:]:
            line[column] = cell
    elif kind == "header":
        lines[0][column] = draw(st.sampled_from((cell, lines[0][0], "seconds", "iou", "a\u2028b", "x" * 1000)))
    elif kind == "line":
        lines[row] = [cell] * draw(st.sampled_from((0, 1, len(lines[0]), 1000)))
    else:
        lines[row], lines[1] = lines[1], lines[row]
    text = "\n".join(",".join(line) for line in lines) + "\n"
    return Mutant(text.encode(), f"{kind} {lines[0][column][:20]} {cell[:20]!r} in line {row}")


@st.composite
def text_file(draw: Any, good: bytes) -> Mutant:
    """Lines of text with odd characters, or damaged bytes."""
    odd = (
        "",
        " ",
        "\0",
        "\u2028",
        "\ufeff",
        "a" * 100_000,
        "\u202e",
        "\x1b[31m",
        "..",
        "<b>&amp;</b>",
        "{x}",
        "%s",
        "${a}",
        "\U0001f600" * 50,
        "é" * 500,
        "-",
        "--",
        "a\tb",
        "'",
        '"',
        "\\",
    )
    if draw(st.booleans()):
        mutant = draw(damaged(good))
        return mutant._replace(broken=mutant.broken or mutant.content in (b"", b" \n" * 4096, b"\n"))
    words = draw(st.lists(st.sampled_from(odd), min_size=1, max_size=4))
    return Mutant("\n".join([*words, ""]).encode(), f"lines {[w[:8] for w in words]}")


@st.composite
def jsonl_file(draw: Any, good: bytes) -> Mutant:
    """JSON lines of which one is odd, or damaged bytes."""
    lines = good.splitlines()
    at = draw(st.integers(0, len(lines) - 1))
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged(good))
    tree, note = draw(odd_tree(json.loads(lines[at])))
    lines[at] = dumped(tree).encode("utf-8", "surrogatepass")
    return Mutant(b"\n".join(lines) + b"\n", f"line {at + 1}: {note}", not isinstance(tree, dict))
