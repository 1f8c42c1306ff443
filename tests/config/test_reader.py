"""Reading options: from nested values, from key=value words, and their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
from omegaconf import OmegaConf

from carv_3d.config.reader import escaped, full_key, read_options, read_override, read_words, resolved
from carv_3d.core.options import Options, option
from carv_3d.errors import CarvError


@dataclass(frozen=True)
class Inner(Options):
    a: int = option(1, "A number.", least=0)
    b: tuple[float, float] = option((0.0, 1.0), "A pair.")
    text: str = option("", "Any text.")
    kind: Literal["one", "two"] = option("one", "A word.")


@dataclass(frozen=True)
class Other(Options):
    a: int = option(1, "A number.")


@dataclass(frozen=True, kw_only=True)
class Outer(Options, renamed={"depth": "c"}):
    inner: Inner = option(Inner, "A group.")
    other: Other = option(Other, "A group.")
    c: float | None = option(None, "A number.")
    file: str | None = option(None, "A text or nothing.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.c == self.inner.a:
            raise CarvError("c and a are equal.")


def read(*words: str) -> Outer:
    return read_options(Outer(), read_words(words, Outer()))


def test_reading_changes_neither_defaults_nor_values() -> None:
    defaults, values = Outer(), {"inner": {"b": [1, 2]}}
    new = read_options(defaults, values)
    assert (new.inner.a, new.inner.b, new.c) == (1, (1.0, 2.0), None)
    assert defaults == Outer()
    assert values == {"inner": {"b": [1, 2]}}
    assert read_options(defaults, {"c": 3}).c == 3.0
    assert read_options(defaults, {"depth": 3}).c == 3.0  # its name in the last version


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"inner": {"a": -1}}, "inner.a is -1; it must be a whole number of at least 0."),
        ({"inner": {"aa": 1}}, "unknown option 'inner.aa'; did you mean 'inner.a'?"),
        ({"inner": 3}, "inner is 3; it must be a group of options (key: value)."),
        ({"zzz": 3}, "unknown option 'zzz'; the top level has: inner, other, c, file"),
        ({"c": 1}, "c and a are equal."),
    ],
)
def test_a_mistake_is_named_with_its_full_name(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(CarvError) as caught:
        read_options(Outer(), values)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("word", "place", "value"),
    [
        ("inner.a=4", "inner.a", 4),
        ("b=[1, 2]", "inner.b", (1.0, 2.0)),  # the last part of a name is enough
        ("kind=two", "inner.kind", "two"),
        ("depth=2", "c", 2.0),
        ("inner={a: 5, text: x}", "inner.a", 5),
        ("text=blue # green", "inner.text", "blue # green"),
        ("text=a: b", "inner.text", "a: b"),
        ("text=null", "inner.text", "null"),
        ("text=3", "inner.text", "3"),
        ("text=x=y", "inner.text", "x=y"),
        (r"text=a \\${x} ${y}", "inner.text", r"a \\${x} ${y}"),
        ("file=null", "file", None),
        ("file=a.txt", "file", "a.txt"),
        ("other.a=${inner.a}", "other.a", 1),
    ],
)
def test_a_word_sets_one_option_and_a_text_stands_as_it_is(word: str, place: str, value: object) -> None:
    words = [word, "inner.a=1"] if "$" in word and "text" not in word else [word]
    whole: object = read(*words)
    for part in place.split("."):
        whole = getattr(whole, part)
    assert whole == value


def test_later_words_win() -> None:
    assert read("c=2", "c=3").c == 3.0


def test_a_short_name_must_mean_one_option() -> None:
    assert full_key(Outer(), "b") == "inner.b"
    assert full_key(Outer(), "inner") == "inner"
    with pytest.raises(CarvError, match=r"'a' may be inner\.a or other\.a; write the whole name"):
        full_key(Outer(), "a")
    with pytest.raises(CarvError, match=r"unknown option 'knd'; did you mean 'inner\.kind'"):
        full_key(Outer(), "knd")


@pytest.mark.parametrize("word", ["x", "=3", "a..b=1", "inner.b=[1", "c=${nothing}", "1a=2"])
def test_a_broken_word_is_refused_in_a_sentence(word: str) -> None:
    with pytest.raises(CarvError) as caught:
        read(word)
    assert "\n" not in str(caught.value)


def test_a_list_for_a_group_and_a_group_for_a_list_are_named() -> None:
    with pytest.raises(CarvError, match=r"^inner is \[\]; it must be a group of options: write inner\.NAME=VALUE"):
        resolved("the options", {"inner": {"a": 1}, "x": [1]}, read_override("inner=[]", Outer()))
    with pytest.raises(CarvError, match=r"^inner is 3; it must be a group of options: write inner\.NAME=VALUE"):
        resolved("the options", {"inner": {"a": 1}, "x": "${inner.a}"}, {"inner": 3})
    with pytest.raises(CarvError, match="cannot be resolved"):
        resolved("the options", {"inner": {"a": 1}, "x": "${inner.b}"}, {"inner": "${y}"})
    with pytest.raises(CarvError, match=r"^x\.y is {'a': 1}; it must be a list$"):
        resolved("the options", {"x": {"y": [1]}}, {"x": {}}, OmegaConf.create({"x": {"y": {"a": 1}}}))


def test_what_is_escaped_is_resolved_to_itself() -> None:
    values = {"a": [r"${x} \\${y}"], "b": {"c": 1}}
    assert resolved("the options", escaped(values)) == values
