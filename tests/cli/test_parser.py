"""The one grammar of the commands: positional words, flags and key=value in any order, and the last version's forms."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from commands import refusal

from carv_3d.cli import attribute, compare, doctor, generate, options, threestudio, variance
from carv_3d.cli.options import PARSERS
from carv_3d.cli.parser import OldForm, Parser, flags, one_word
from carv_3d.config.reader import read_words
from carv_3d.core.options import Options, option
from carv_3d.errors import CarvError
from carv_3d.generate.config import Config


@dataclass(frozen=True, kw_only=True)
class Asked(Options):
    """Of a command that is made up."""

    out: Path | None = option(None, "The folder.")
    K: tuple[int, ...] = option((1, 2), "Draws, 50 % of them.", least=1)
    methods: tuple[str, ...] = option(("a", "b"), "Names.")
    share: float = option(0.5, "A share.", above=0, below=1)
    kind: Literal["one", "two"] = option("one", "Which.")
    fast: bool = option(False, "Less work.")


def parser(repeated: bool = False) -> Parser:
    made = Parser("carv test", "carv test\n\nA test.", [OldForm("--set", r"[\w.]+=.*", lambda words: words)])
    made.declare(Asked, "out", "draws=K", "methods", "share", "kind", "fast", repeated=repeated)
    return made


def test_words_flags_and_options_stand_in_any_order() -> None:
    args = parser().read(["a.b=1", "x", "--draws", "4,1,2", "c=d=e", "--methods=u,v", "y"])
    assert args is not None
    assert (args.words, args.options, args.given) == (["x", "y"], ["a.b=1", "c=d=e"], ["a.b=1", "x", "c=d=e", "y"])
    assert flags(args) == {"K": (4, 1, 2), "methods": ("u", "v")}


def test_a_value_may_be_two_dashes() -> None:
    args = parser().read(["--out=--", "--methods=--"])
    assert args is not None
    assert flags(args) == {"out": Path("--"), "methods": ("--",)}


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
        (["--draws", "1 2"], "--draws is ['1 2']; it must be a list of numbers of at least 1."),
        (["--draws", "2,0"], "--draws is [2, 0]; it must be a list of numbers of at least 1."),
        (["--share", "half"], "--share is 'half'; it must be a number above 0 and below 1."),
        (["--share", "nan"], "--share is nan; it must be a number above 0 and below 1."),
        (["--kind", "too"], "--kind is 'too'; it must be one of one, two (did you mean two?)."),
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
    assert (args.words, args.options, args.K) == (["x"], ["a=1", "b.c=2", "d=4"], (3,))
    notes = capsys.readouterr().err.splitlines()
    assert notes == ["note: --set a=1 b.c=2 is now written a=1 b.c=2", "note: --set d=4 is now written d=4"]


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        (variance.parser(), ["c", "--grid", "R=1,2", "K=4"], ["c", "--renders", "1,2", "--draws", "4"]),
        (variance.parser(), ["c", "--at", "10", "50", "--set", "width=32"], ["c", "--at", "10,50", "width=32"]),
        (
            compare.parser(),
            ["--prompt", "p", "--methods", "a", "b=num_draws=8", "--budget", "5", "--set", "width=3"],
            ["--prompt", "p", "--method", "a", "--method", "b=num_draws=8", "--seconds", "5", "width=3"],
        ),
        (
            attribute.parser(),
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
    "made", [parser() for parser in (*PARSERS, doctor.parser, options.parser, threestudio.parser)], ids=lambda p: p.prog
)
def test_a_help_fits_a_screen_and_has_an_example(made: Parser) -> None:
    lines = made.format_help().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 102
    assert lines[0].startswith(f"usage: {made.prog}")
    assert any(line.startswith("example") for line in lines)


def test_one_word() -> None:
    assert one_word([], "prompts", "x") is None
    assert one_word(["a"], "prompts", "x") == "a"
    with pytest.raises(CarvError, match=r"3 prompts were given \('a', 'b', 'c'\); name one"):
        one_word(["a", "b", "c"], "prompts", "x")


def test_a_flag_is_as_its_option_is_declared() -> None:
    args = parser().read(["--share", "0.25", "--fast", "--kind", "two"])
    assert args is not None
    assert flags(args) == {"share": 0.25, "fast": True, "kind": "two"}  # the others are left to the class
    repeated = parser(repeated=True).read(["--methods", "a,b", "--methods", "c", "--draws", "1", "--draws", "2"])
    assert repeated is not None
    assert flags(repeated) == {"methods": ("a,b", "c"), "K": (1, 2)}
    assert "Names; repeat it for several" in parser(repeated=True).format_help()
    shown = " ".join(parser().format_help().split())
    assert "--draws N,N Draws, 50 % of them (default: 1,2)" in shown
    assert "--methods A,B Names (default: a,b)" in shown
    assert "--kind one|two Which (default: one)" in shown
    assert "--fast Less work" in shown


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser().prog)
def test_every_flag_of_every_command_is_declared_once(parser: Callable[[], Parser]) -> None:
    """A flag's default, kind and help are those of an option class; the rest are switches without values."""
    for action in parser()._actions:
        for flag in action.option_strings:
            declared = parser().options.get(flag)
            if declared is None:
                assert flag in ("-h", "--help", "--dry-run"), f"{flag} is declared by no option class"
                continue
            assert (action.dest, action.default) == (declared.name, argparse.SUPPRESS)
            assert declared.help.removesuffix(".").replace("%", "%%") in (action.help or "")
            assert declared.default is not dataclasses.MISSING


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["variance", "x", "--out", ""], "--out is empty; give a value, or leave it out"),
        (["attribute", "a mug", "--model="], "--model is empty"),
        (["attribute", "a mug", "--training-images", ""], "--training-images is empty"),
        (["attribute", "a mug", "--store="], "--store is empty"),
        (["attribute", ""], "the query is missing"),
        (["variance", ""], "the configuration or run is missing"),
        (["distill", "variance", ""], "the model or run is missing"),
        (["compare", ""], "'' names no folder; write FOLDER or NAME=FOLDER"),
        (["compare", "a="], "'a=' names no folder"),
        (["attribute", "a mug", "--shard", "1/0"], "shard is '1/0'; it must be I/N"),
        (["variance", "x", "--at", "1e3"], r"--at is \['1e3'\]; it must be a list of numbers"),
        (["variance", "x", "--at", "-5"], r"--at is \[-5\]; it must be|argument --at: expected one argument"),
        (["variance", "x", "--at"], "argument --at: expected one argument"),
    ],
)
def test_a_name_that_is_empty_and_a_value_that_is_none(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refusal(capsys, *words)
    assert re.search(sentence, text), text
    assert "is now written" not in text


def test_a_prompt_may_be_given_empty() -> None:
    args = attribute.parser().read(["x", "--prompt", ""])
    assert args is not None
    assert flags(args) == {"prompt": ""}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate", "a red mug", "--seed", "1", "seed=2"], "--seed and seed set the same; give one of them"),
        (["generate", "a red mug", "prompt=a blue cup"], "the prompt is given twice, as a word and as an option"),
        (["variance", "carv-tiny", "--prompt", "a", "system.prompt_processor.prompt=b"], "--prompt and system.prompt"),
        (["variance", "carv-tiny", "--methods", "is,strat,is"], "in --methods 'is' is named twice; name it once"),
        (["variance", "carv-tiny", "--draws", "1,2,1"], "in --draws 1 is named twice; name it once"),
        (["attribute", "a", "--seed", "5", "seed=3"], "--seed and seed set the same"),
        (["doctor", "carv-tiny", "--threestudio", "x"], "takes one model or one checkout, and not"),
    ],
)
def test_what_is_given_in_two_forms_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refusal(capsys, *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "a", "--out=a"], "--out is given 2 times; give it once"),
        (["--methods=u", "x", "--methods", "v"], "--methods is given 2 times; give it once, with its values joined by"),
        (["--share=.1", "--share=.2", "--share=.3"], "--share is given 3 times"),
    ],
)
def test_a_flag_that_takes_one_value_is_given_once(words: list[str], said: str) -> None:
    with pytest.raises(CarvError, match=said):
        parser().read(words)


def test_flags_that_may_be_repeated() -> None:
    args = parser(repeated=True).read(["--methods=u", "--methods", "v,w", "--fast", "--fast", "--", "--out", "--out"])
    assert args is not None
    assert flags(args) == {"methods": ("u", "v,w"), "fast": True}
    for made, flag in ((generate.parser(), "--config"), (doctor.parser(), "--threestudio")):
        with pytest.raises(CarvError, match=f"{flag} is given 2 times; give it once"):
            made.read(["x", flag, "a", f"{flag}=b"])


def test_of_options_that_are_repeated_the_later_counts_and_two_options_are_two() -> None:
    args = generate.parser().read(["a", "--seed=3", "system.guidance.seed=2", "lr=1", "lr=2"])
    assert args is not None
    assert (args.seed, args.options) == (3, ["system.guidance.seed=2", "lr=1", "lr=2"])
    assert read_words(args.options, Config())["system"]["optimizer"]["args"]["lr"] == 2
