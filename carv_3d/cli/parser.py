"""The one grammar of the commands: `carv COMMAND WORD ... --flag VALUE ... key=value ...`, in any order.

Flags are a command's own arguments, key=value sets an option of the configuration. Several values are joined by commas
(`--methods uniform,is`), or the flag is repeated where a value may hold commas (`--prompt`). What follows `--` is taken
as it stands. A flag that takes a value is given once; of an option that is given twice the later counts. A flag and an
option of the same are refused.

This is argparse with messages of one sentence. Typer, cyclopts and tyro were weighed: each would declare the flags more
briefly, but none reads key=value words between positional ones, and this file would be needed on top of them.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import re
import shlex
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from carv_3d.core.kinds import members
from carv_3d.core.options import Option, Options, RunOptions
from carv_3d.errors import CarvError, printable, shown
from carv_3d.io.files import expanded

# a list's flag for each of its texts, and flags without a value, whose repetition changes nothing
REPEATABLE = (argparse._AppendAction, argparse._StoreTrueAction, argparse._HelpAction)


class OldForm(NamedTuple):
    """A flag of the last version that took several words: `flag` and each word that matches `takes` become `new`."""

    flag: str
    takes: str
    new: Callable[[list[str]], list[str]]


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one sentence with the nearest right flag, raised as CarvError."""

    def __init__(
        self,
        prog: str,
        text: str,
        old_forms: Sequence[OldForm] = (),
        takes_words: bool = True,
        takes_names: bool = False,
    ) -> None:
        """text: usage, description and what stands at the end of the help, with an empty line between them.

        takes_names: whether a word NAME=VALUE may be no option.
        """
        form = argparse.RawDescriptionHelpFormatter
        usage, description, *end = text.split("\n\n", 2)
        super().__init__(prog, usage or None, description, "".join(end), formatter_class=form, allow_abbrev=False)
        self.old_forms, self.takes_words, self.takes_names = old_forms, takes_words, takes_names
        self.options: dict[str, Option] = {}  # flag -> what it sets

    def error(self, message: str) -> NoReturn:
        """Raise CarvError in place of an exit."""
        raise CarvError(f"{message[0].lower()}{message[1:]}; see {self.prog} --help")

    def declare(self, kind: type[Options], *names: str, group: str = "", repeated: bool = False) -> None:
        """Flags that set options of a class: help, default, kind, range and choices are those declared there.

        A flag that is not given is not among the arguments, so that the class's default holds.

        Args:
            kind: the class.
            names: of options, which the flags have too; `draws=K` names the flag of K --draws.
            group: a heading above them in the help.
            repeated: a list is given by a flag for each of its texts, in place of commas.
        """
        place = self.add_argument_group(group) if group else self
        for word, _, name in (name.partition("=") for name in names):
            declared, flag = kind.declared()[name or word], f"--{word.replace('_', '-')}"
            self.options[flag] = declared
            several = repeated and _items(declared.kind) is not None
            more: dict[str, Any] = {"action": "append" if several else "store", "metavar": _metavar(declared, several)}
            if declared.kind is bool:
                more = {"action": "store_true"}
            text = _help(declared, several)
            made = place.add_argument(flag, dest=declared.name, default=argparse.SUPPRESS, help=text, **more)
            if declared.choices:  # argcomplete asks for it; argparse's own check has other words
                made.completer = functools.partial(_completions, declared.choices)  # type: ignore[attr-defined]

    def dry_run(self, parts: str) -> None:
        """The flag --dry-run."""
        self.add_argument("--dry-run", action="store_true", help=f"Show {parts}, time and memory; write nothing")

    def read(self, words: Sequence[str]) -> argparse.Namespace | None:
        """The arguments, with `words`, the positional ones, `options`, those of key=value, and `given`, both.

        `command` is the line as it was typed. None after --help.

        Raises:
            CarvError: for an unknown flag or a wrong value.
        """
        end = words.index("--") if "--" in words else len(words)
        before, literal = list(words[:end]), list(words[end + 1 :])
        for form in self.old_forms:
            before = _renewed(before, form)
        self.refuse_repeated(before)
        self.add_argument("words", nargs="*", help=argparse.SUPPRESS)
        try:
            args, rest = self.parse_known_intermixed_args(before)
        except SystemExit:  # --help; mistakes are CarvErrors
            return None
        self.refuse_unknown(rest if self.takes_words else [*rest, *args.words, *literal])
        for flag, declared in self.options.items():
            if declared.name in args:
                word = getattr(args, declared.name)
                text = not declared.choices and {str, Path} & set(members(declared.kind))
                if word == "" and declared.default != "" and text:
                    raise CarvError(f"{flag} is empty; give a value, or leave it out")
                value = _read(word, declared.kind)
                setattr(args, declared.name, declared.check(value, flag))
                if _items(declared.kind) is not None and not isinstance(word, list):
                    refuse_twice(flag, getattr(args, declared.name))
        args.command, args.given = shlex.join([*self.prog.split(), *words]), [*args.words, *literal]
        args.options = [w for w in args.words if re.match(r"[A-Za-z_][\w.]*=", w)]
        args.words = [w for w in args.words if w not in args.options] + literal
        if not self.takes_names:
            self.refuse_two_forms(args)
        return args

    def refuse_repeated(self, words: Sequence[str]) -> None:
        """CarvError for a flag that takes one value and is given twice: the first would be lost without a word."""
        given = [word.partition("=")[0] for word in words]
        lists = {flag for flag, declared in self.options.items() if _items(declared.kind) is not None}
        for action in self._actions:
            flag = next(iter(action.option_strings), "")
            if flag and given.count(flag) > 1 and not isinstance(action, REPEATABLE):
                fix = f"give it once{', with its values joined by commas' if flag in lists else ''}"
                raise CarvError(f"{flag} is given {given.count(flag)} times; {fix}")

    def refuse_two_forms(self, args: argparse.Namespace) -> None:
        """CarvError where key=value sets what a flag sets too: neither of them is the later one."""
        given = {declared.name for declared in self.options.values()} & vars(args).keys()
        for key in (word.partition("=")[0] for word in args.options):
            name = key.rpartition(".")[2]
            if name in given and (name == key or name not in RunOptions.declared()):
                raise CarvError(f"--{name} and {key} set the same; give one of them")

    def refuse_unknown(self, words: Sequence[str]) -> None:
        """Raise for leftover words that look like flags."""
        known = [option for action in self._actions for option in action.option_strings]
        for word in words:
            name = word.partition("=")[0]
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
            raise CarvError(f"unknown option {name}; {hint}")


def command(parser: Callable[[], Parser]) -> Callable[[Callable[[argparse.Namespace], int]], Callable[..., int]]:
    """Make `main(words)` of a `main(args)`: the parser reads the words, and --help ends with status 0."""

    def decorate(main: Callable[[argparse.Namespace], int]) -> Callable[..., int]:
        @functools.wraps(main)
        def run(words: Sequence[str]) -> int:
            args = parser().read(words)
            return 0 if args is None else main(args)

        return run

    return decorate


def flags(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given with their values, without what `Parser.read` adds."""
    return {name: value for name, value in vars(args).items() if name not in ("words", "options", "given", "command")}


def refuse_twice(flag: str, values: Sequence[Any]) -> None:
    """CarvError for a list that names something twice: which of the two was meant to be another?"""
    again = next((value for i, value in enumerate(values) if value in values[:i]), None)
    if again is not None:
        raise CarvError(f"in {flag} {shown(again)} is named twice; name it once")


def the_word(words: Sequence[str], what: str, example: str, missing: str) -> str:
    """The single positional word; CarvError where there are several, or none: then what is `missing`."""
    word = one_word(words, what, example)
    if not word:
        raise CarvError(f"the {missing}, such as {example}")
    return word


def one_word(words: Sequence[str], what: str, example: str) -> str | None:
    """The single positional word, or None; CarvError where there are several."""
    if len(words) > 1:
        raise CarvError(
            f"{len(words)} {what} were given ({', '.join(map(repr, words[:3]))}); name one, in quotation marks "
            f"where it holds spaces: {example}"
        )
    return words[0] if words else None


def _read(word: Any, kind: Any) -> Any:
    """A word of the command line as a value of the kind, where it reads as one; else as it is, for the check."""
    if word == []:
        word = "--"  # argparse loses it in --out=--
    item = _items(kind)
    if item is not None:
        return tuple(_read(part, item) for part in (word if isinstance(word, list) else word.split(",")))
    for member in members(kind):
        if member is Path:
            return expanded(word)
        if member in (int, float):
            with contextlib.suppress(ValueError):
                return member(word)
    return word


def _items(kind: Any) -> Any:
    """The kind of a list's items; None where it is none."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None


def _completions(choices: Sequence[str], **asked: Any) -> list[str]:
    """What may stand behind a flag, for completion in a shell."""
    return list(choices)


def _metavar(declared: Option, repeated: bool) -> str:
    item = _items(declared.kind)
    if declared.choices or (item is not None and not repeated):
        return "|".join(declared.choices) or ("N,N" if item is int else "A,B")
    words = {int: "N", float: "NUMBER", Path: "PATH"}
    return next((words[member] for member in members(declared.kind) if member in words), "TEXT")


def _help(declared: Option, repeated: bool) -> str:
    text = declared.help.removesuffix(".") + "; repeat it for several" * repeated
    values = declared.default if isinstance(declared.default, tuple) else [declared.default]
    default = ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
    if default not in ("None", "False", ""):
        text += f" (default: {default})"
    return text.replace("%", "%%")


def _renewed(words: list[str], form: OldForm) -> list[str]:
    """The words with an old form replaced, and a note on stderr where there was one."""
    out: list[str] = []
    rest = list(words)
    while rest:
        flag, equals, value = rest[0].partition("=")
        if flag != form.flag:
            out.append(rest.pop(0))
            continue
        rest.pop(0)
        taken = [value] if equals else []
        while rest and re.fullmatch(form.takes, rest[0]):
            taken.append(rest.pop(0))
        new = form.new(taken) if taken else [flag]  # argparse says what is wrong
        if new != [flag, *taken]:
            print(printable(f"note: {' '.join([flag, *taken])} is now written {' '.join(new)}"), file=sys.stderr)
        out += new
    return out
