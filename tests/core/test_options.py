"""Option classes: what a field takes, in which words it refuses, and how subclasses share and change fields."""

from __future__ import annotations

import ast
import collections
from dataclasses import FrozenInstanceError, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import carv_3d
from carv_3d.core.estimator import EstimatorOptions
from carv_3d.core.options import DrawOptions, Limits, Options, check_draws, option
from carv_3d.distill.options import DistillOptions
from carv_3d.errors import CarvError
from carv_3d.generate.config import Config
from carv_3d.guidance.vsd_options import VSDOptions


@dataclass(frozen=True, kw_only=True)
class Small(Options):
    count: int | Literal["auto"] = option(3, "How many.", least=1, most=9)
    share: float | None = option(None, "A share.", above=0, below=1)
    pair: tuple[float, float] = option((0.0, 1.0), "Two numbers.", least=0)
    names: tuple[str, ...] = option((), "Any number of texts.")
    flag: bool = option(False, "On or off.")
    text: str = option("", "Any text.")
    word: str = option("one", "Of a table.", choices={"one": 1, "two": 2})
    path: Path | None = option(None, "A file.")


@dataclass(frozen=True, kw_only=True)
class Changed(Small, defaults={"count": 5, "word": "two"}, kinds={"count": int}, renamed={"number": "count"}):
    more: float = option(0.0, "Of its own.")


@dataclass(frozen=True, kw_only=True)
class Outer(Options):
    inner: Changed = option(lambda: Changed(count=7), "A group.")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"count": np.int64(4)}, 4),
        ({"count": 4.0}, 4),
        ({"count": "auto"}, "auto"),
        ({"share": np.float32(0.5)}, 0.5),
        ({"share": None}, None),
        ({"pair": [1, 2]}, (1.0, 2.0)),
        ({"names": ["a"]}, ("a",)),
        ({"word": "two"}, "two"),
        ({"path": "a/b"}, Path("a/b")),
    ],
)
def test_values_are_kept_in_the_declared_kind(given: dict[str, Any], kept: Any) -> None:
    (name,) = given
    value = getattr(Small(**given), name)
    assert value == kept
    assert type(value) is type(kept)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"count": 0}, "count is 0; it must be a whole number from 1 to 9, or auto."),
        ({"count": True}, "count is True; it must be a whole number from 1 to 9, or auto."),
        ({"count": 2.5}, "count is 2.5; it must be a whole number from 1 to 9, or auto."),
        ({"count": "aut"}, "count is 'aut'; it must be a whole number from 1 to 9, or auto (did you mean auto?)."),
        ({"share": 1}, "share is 1; it must be a number above 0 and below 1, or null."),
        ({"share": float("nan")}, "share is nan; it must be a number above 0 and below 1, or null."),
        ({"pair": (1.0, -1.0)}, "pair is [1.0, -1.0]; it must be a list of 2 numbers of at least 0."),
        ({"pair": [1.0]}, "pair is [1.0]; it must be a list of 2 numbers of at least 0."),
        ({"flag": 1}, "flag is 1; it must be true or false."),
        ({"text": None}, "text is None; it must be text."),
        ({"word": "tow"}, "word is 'tow'; it must be one of one, two (did you mean two?)."),
        ({"path": 3}, "path is 3; it must be a path, or null."),
        ({"cuont": 3}, "Small has no option 'cuont'; did you mean count?"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CarvError) as caught:
        Small(**given)
    assert str(caught.value) == sentence


def test_values_are_given_by_name() -> None:
    with pytest.raises(CarvError, match="Small got 8 without a name; write it as NAME=VALUE"):
        Small(8)  # type: ignore[misc]


def test_a_long_value_is_cut() -> None:
    with pytest.raises(CarvError) as caught:
        Small(pair=list(range(100_000)))
    assert len(str(caught.value)) < 160


def test_options_do_not_change_and_replacing_checks() -> None:
    with pytest.raises(FrozenInstanceError):
        Small().count = 4  # type: ignore[misc]
    with pytest.raises(CarvError, match="count is 10"):
        replace(Small(), count=10)


def test_a_subclass_changes_defaults_and_kinds_and_nothing_else() -> None:
    assert (Small().count, Small().word, Small(count="auto").count) == (3, "one", "auto")
    assert (Changed().count, Changed().word, Changed().share) == (5, "two", None)
    assert list(Changed.declared()) == [*Small.declared(), "more"]
    with pytest.raises(CarvError, match=r"count is 'auto'; it must be a whole number from 1 to 9\."):
        Changed(count="auto")
    with pytest.raises(CarvError, match=r"count is 10"):  # the range is inherited
        Changed(count=10)
    with pytest.raises(CarvError, match="no option 'number'; did you mean count"):
        Changed(number=3)  # type: ignore[call-arg]


def test_everything_declared_can_be_listed() -> None:
    count = Small.declared()["count"]
    assert (count.default, count.help, count.limits, count.choices) == (3, "How many.", Limits(1, None, 9), ("auto",))
    assert Small.declared()["word"].choices == ("one", "two")
    assert (Small.declared()["text"].is_text, count.is_text) == (True, False)
    walked = {name: value for name, _, value in Outer().walk("top")}
    assert walked["top.inner.count"] == 7
    assert walked["top.inner"] == Changed(count=7)
    assert Outer.declared()["inner"].is_group


def test_draws_divide_into_groups_and_pairs() -> None:
    check_draws(8, True, 4)
    check_draws(3, False)
    with pytest.raises(CarvError, match="set num_draws to 4 or antithetic to false"):
        DrawOptions(num_draws=3, antithetic=True)
    with pytest.raises(CarvError, match="equal groups"):
        check_draws(6, False, 4)
    with pytest.raises(CarvError, match="6 in 2 groups, and antithetic draws come in pairs: set num_draws to 8"):
        check_draws(6, True, 2)
    assert DrawOptions(num_draws="auto", antithetic=True).num_draws == "auto"
    with pytest.raises(CarvError, match=r"num_draws is 'auto'; it must be a whole number from 1 to 2\^40\."):
        EstimatorOptions(num_draws="auto")


def test_every_option_says_what_it_does() -> None:
    for kind in (EstimatorOptions(), Config(), VSDOptions(), DistillOptions()):
        for name, declared, _ in kind.walk():
            assert declared.help.endswith("."), name


def _is_of_options(name: str) -> bool:
    """Classes named after a file (`UNetConfig`) have that file's keys, and files may share them."""
    return name == "Config" or name.endswith(("Options", "Args", "Request"))


def test_no_option_is_declared_twice() -> None:
    """Groups (`data`, `loss`) apart, every name stands in the body of one option class."""
    places = collections.defaultdict(set)
    root = Path(carv_3d.__file__).parent
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and _is_of_options(node.name):
                for field in node.body:
                    kind = ast.unparse(field.annotation) if isinstance(field, ast.AnnAssign) else ""
                    if kind and "ClassVar" not in kind and not kind.endswith(("Options", "Args")):
                        places[ast.unparse(field.target)].add(f"{path.stem}.{node.name}")
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert twice == {}
