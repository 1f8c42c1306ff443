"""One reader for each kind of foreign file: what it takes, and one sentence for whatever is wrong with a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carv_3d.errors import CarvError
from carv_3d.io import structured
from carv_3d.io.files import MissingFileError
from carv_3d.io.structured import (
    differing_keys,
    look_up,
    parse_json,
    read_csv,
    read_json,
    read_text,
    read_yaml,
)

READERS: dict[str, Callable[[Path, str], Any]] = {"json": read_json, "yaml": read_yaml, "csv": read_csv}


def refusal(read: Callable[[Path, str], Any], path: Path) -> str:
    """The sentence, which names the file and ends in what to do."""
    with pytest.raises(CarvError) as caught:
        read(path, "fetch it again")
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("kind", READERS)
def test_what_no_reader_takes(kind: str, tmp_path: Path) -> None:
    path, read = tmp_path / f"a.{kind}", READERS[kind]
    assert refusal(read, path).endswith("is missing; fetch it again")
    with pytest.raises(MissingFileError):
        read(path, "")
    assert "is a folder, and a file is due; fetch it again" in refusal(read, tmp_path)
    path.write_bytes(b"a: \xff")
    assert "is not text in UTF-8; fetch it again" in refusal(read, path)


def test_a_file_of_just_the_limit_is_read_and_a_byte_order_mark_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfabc")
    assert read_text(path, limit=6) == "abc"
    with pytest.raises(CarvError, match="larger"):
        read_text(path, limit=5)
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}
    path.write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_yaml(path) == {"a": 1}
    monkeypatch.setattr(structured, "MAX_YAML_BYTES", 6)
    assert "is larger than" in refusal(read_yaml, path)
    path.write_bytes(b"\xef\xbb\xbfa,b\n1,2\n")
    assert read_csv(path) == ([{"a": "1", "b": "2"}], 0)


REFUSED = {
    "json": {
        "": "is not readable JSON",
        '{"a": 1': "is not readable JSON",
        '{"a": {"b": 1, "b": 2}}': "the key 'b' is there twice",
        '{"a": ["\\ud83d\\ude00", "\\uD800"]}': r"has \ud800, half of a letter",
        "[" * 100_000: "nested too deeply",
        '{"a": ' + "7" * 301 + "}": "an integer of 301 digits",
        "[1]": "does not hold a JSON object",
        "null": "does not hold a JSON object",
    },
    "yaml": {
        "a: [1": "is not readable YAML",
        "a:\n  b: 1\n  b: 2": "duplicate key b",
        "a: " + "[" * 3000: "is not readable YAML",
        "a: " + "[" * 900 + "]" * 900: "nested too deeply",
        "a: " + "7" * 5000: "is not readable YAML",
        "a: ${": "is not readable YAML",
        "a: !!python/name:os.system": "is not readable YAML",
        "a: 1\n---\nb: 2": "is not readable YAML",
        "a: [1, {b: 010}]": "is not readable YAML (010 is 8 in YAML: write 8, or 10, or '010' for a text)",
        '{"a":010}': "010 is 8 in YAML: write 8, or 10, or '010' for a text",
        "a: 1:30": "is not readable YAML (1:30 is 90 in YAML: write 90, or '1:30' for a text)",
        "- 1": "must hold groups of options (key: value), and it holds a list",
        "3": "must hold groups of options (key: value), and it holds no group",
        "'1'": "must hold groups of options (key: value), and it holds no group",
    },
    "csv": {
        "a,b,a\n1,2,3\n": "two columns of the name 'a'",
        "a\n" + "1" * 200_000 + "\n": "is not readable CSV (line 2: field larger",
    },
}


CASES = [(kind, text) for kind, texts in REFUSED.items() for text in texts]


@pytest.mark.parametrize(("kind", "text"), CASES, ids=lambda word: word[:12])
def test_what_is_refused(kind: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text(text)
    sentence = refusal(READERS[kind], tmp_path / "a")
    assert REFUSED[kind][text] in sentence
    assert sentence.endswith("; fetch it again")


def test_json_that_is_taken() -> None:
    text = '{"a": {"b": [1, 2.5, "x"]}, "n": ' + "7" * 300 + "}"
    assert parse_json(text, "it") == {"a": {"b": [1, 2.5, "x"]}, "n": int("7" * 300)}
    assert parse_json("[1]", "it", kind=list) == [1]
    with pytest.raises(CarvError, match="line 3 does not hold a JSON list; restore it"):
        parse_json("{}", "line 3", kind=list)


def test_yaml_that_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: &x {lr: 1e-3, day: 2020-01-01}\nb: *x\nc: ${a.lr}\n")
    inner = {"lr": 0.001, "day": "2020-01-01"}
    assert read_yaml(path) == {"a": inner, "b": inner, "c": "${a.lr}"}
    path.write_text("a: '010'\nb: 007\nc: at 1:30 and 010\nd: 0x10\ne: 0\n")
    assert read_yaml(path) == {"a": "010", "b": 7, "c": "at 1:30 and 010", "d": 16, "e": 0}
    path.write_text("")
    assert read_yaml(path) == {}


def test_csv_leaves_out_damaged_lines_and_counts_them(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,"x, y"\n\n2\n3,4,5\n6,7\n8,9')
    assert read_csv(path) == ([{"a": "1", "b": "x, y"}, {"a": "6", "b": "7"}], 3)
    path.write_text('a,b\n1,"x\n2,3\n4,\0\n')
    assert read_csv(path, quoted=False) == ([{"a": "1", "b": '"x'}, {"a": "2", "b": "3"}, {"a": "4", "b": "\ufffd"}], 0)
    path.write_text("a,b")  # its one line was cut off
    assert read_csv(path) == ([], 1)
    path.write_text("")
    assert read_csv(path) == ([], 0)


def test_differing_keys_and_look_up() -> None:
    a, b = {"x": {"y": 1, "z": 2}, "w": 0}, {"x": {"y": 1, "z": 3}, "v": 0}
    assert differing_keys(a, b) == ["v", "w", "x.z"]
    assert look_up(a, "x.z") == 2
    assert look_up(a, "x.q.r") is None


def test_a_value_conforms_to_an_annotation() -> None:
    assert structured.conforms({"a": {"b": 1}}, dict[str, dict[str, float]])
    assert structured.conforms([[1, 2.5]], list[tuple[int, float]])
    for value, kind in (
        ([[1, 2.5, 3]], list[tuple[int, float]]),
        ([[1.5, 2.5]], list[tuple[int, float]]),
        ({"a": "1"}, dict[str, float]),
        ({"a": float("nan")}, dict[str, float]),
        ({"a": 10**400}, dict[str, float]),
        ({"a": True}, dict[str, float]),
        ([], dict[str, float]),
        ({}, list[float]),
    ):
        assert not structured.conforms(value, kind), value
