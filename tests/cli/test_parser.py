"""The one grammar of the commands: positional words, flags and key=value in any order, and the last version's forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from carv_3d.cli import attribute, compare, distill, generate, variance
from carv_3d.cli.parser import OldForm, Parser, check_budget, one_word
from carv_3d.errors import CarvError


def parser() -> Parser:
    made = Parser("carv test", "carv test\n\nA test.", [OldForm("--set", r"[\w.]+=.*", lambda words: words)])
    made.path("--out")
    made.numbers("--draws", default=(1,))
    made.names("--methods", ["a"])
    return made


def test_words_flags_and_options_stand_in_any_order() -> None:
    args = parser().read(["a.b=1", "x", "--draws", "4,1,4", "c=d=e", "--methods=u,v", "y"])
    assert args is not None
    assert (args.words, args.options, args.given) == (["x", "y"], ["a.b=1", "c=d=e"], ["a.b=1", "x", "c=d=e", "y"])
    assert (args.draws, args.methods, args.out) == ((1, 4), ("u", "v"), None)


def test_what_follows_two_dashes_is_taken_as_it_stands() -> None:
    args = parser().read(["x", "k=v", "--", "a=b mug", "--draws"])
    assert args is not None
    assert (args.words, args.options) == (["x", "a=b mug", "--draws"], ["k=v"])


def test_a_path_in_the_home_folder_in_both_spellings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    for words in (["--out", "~/x"], ["--out=~/x"]):
        args = parser().read(words)
        assert args is not None
        assert args.out == Path("/somewhere/x")


def test_a_home_of_nobody_is_named() -> None:
    with pytest.raises(CarvError, match="~nobody-of-this-name/x begins with ~ and the name of nobody here"):
        parser().read(["--out", "~nobody-of-this-name/x"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--draw", "1"], "unknown option --draw; did you mean --draws?"),
        (["--draws", "1 2"], "'1 2' is no list of whole numbers; join them by commas, such as 1,2,4"),
        (["--draws"], "argument --draws: expected one argument; see carv test --help"),
    ],
)
def test_a_slip_is_one_sentence(words: list[str], said: str) -> None:
    with pytest.raises(CarvError) as caught:
        parser().read(words)
    assert said in str(caught.value)


def test_an_old_form_becomes_the_new_one_and_a_note_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    args = parser().read(["x", "--set", "a=1", "b.c=2", "--draws", "3", "--set=d=4"])
    assert args is not None
    assert (args.words, args.options, args.draws) == (["x"], ["a=1", "b.c=2", "d=4"], (3,))
    notes = capsys.readouterr().err.splitlines()
    assert notes == ["note: --set a=1 b.c=2 is now written a=1 b.c=2", "note: --set d=4 is now written d=4"]


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        (variance.parser(), ["c", "--grid", "R=1,2", "K=4"], ["c", "--renders", "1,2", "--draws", "4"]),
        (variance.parser(), ["c", "--at", "10", "50", "--set", "width=32"], ["c", "--at", "10,50", "width=32"]),
        (
            compare._parser(),
            ["--prompt", "p", "--methods", "a", "b=num_draws=8", "--budget", "5", "--set", "width=3"],
            ["--prompt", "p", "--method", "a", "--method", "b=num_draws=8", "--seconds", "5", "width=3"],
        ),
        (
            attribute._parser(),
            ["q", "--draws", "4", "--query-draws", "16", "--dim", "64"],
            ["q", "num_draws=4", "query_draws=16", "dim=64"],
        ),
    ],
    ids=["grid", "at and set", "compare", "attribute"],
)
def test_commands_take_the_last_versions_forms(command: Parser, old: list[str], new: list[str]) -> None:
    from copy import deepcopy

    def values(words: list[str]) -> dict[str, Any]:
        return {name: value for name, value in vars(deepcopy(command).read(words)).items() if name != "command"}

    assert values(old) == values(new)


def test_a_grid_of_other_letters_is_refused() -> None:
    with pytest.raises(CarvError, match="--grid is now --renders N,N and --draws N,N; 'N=3' is neither"):
        variance.parser().read(["c", "--grid", "N=3"])


@pytest.mark.parametrize(
    "made", [generate._parser(), variance.parser(), compare._parser(), attribute._parser(), distill._parser(),
             distill._variance_parser()],
    ids=lambda p: p.prog,
)  # fmt: skip
def test_a_help_fits_a_screen_and_has_an_example(made: Parser) -> None:
    lines = made.format_help().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 102
    assert any(line.startswith("example") for line in lines)


def test_one_word_and_a_budget() -> None:
    assert one_word([], "prompts", "x") is None
    assert one_word(["a"], "prompts", "x") == "a"
    with pytest.raises(CarvError, match=r"3 prompts were given \('a', 'b', 'c'\); name one"):
        one_word(["a", "b", "c"], "prompts", "x")
    check_budget(1.0, "--budget")
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(CarvError, match=f"--budget is {wrong:g}; give seconds above 0"):
            check_budget(wrong, "--budget")
