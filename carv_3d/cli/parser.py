"""The one grammar of the commands: `carv COMMAND WORD ... --flag VALUE ... key=value ...`, in any order.

Flags are a command's own arguments, key=value sets an option of the configuration. Several values are joined by commas
(`--methods uniform,is`), or the flag is repeated where a value may hold commas (`--prompt`). What follows `--` is taken
as it stands.

This is argparse with messages of one sentence. Typer, cyclopts and tyro were weighed: each would declare the flags more
briefly, but none reads key=value words between positional ones, and this file would be needed on top of them.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from carv_3d.errors import CarvError
from carv_3d.io.files import expanded


class OldForm(NamedTuple):
    """A flag of the last version that took several words: `flag` and each word that matches `takes` become `new`."""

    flag: str
    takes: str
    new: Callable[[list[str]], list[str]]


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one sentence with the nearest right flag, raised as CarvError."""

    def __init__(self, prog: str, text: str, old_forms: Sequence[OldForm] = (), takes_words: bool = True) -> None:
        """text: usage, description and what stands at the end of the help, with an empty line between them."""
        form = argparse.RawDescriptionHelpFormatter
        usage, description, *end = text.split("\n\n", 2)
        super().__init__(prog, usage or None, description, "".join(end), formatter_class=form, allow_abbrev=False)
        self.old_forms, self.takes_words = old_forms, takes_words

    def error(self, message: str) -> NoReturn:
        """Raise CarvError in place of an exit."""
        raise CarvError(f"{message[0].lower()}{message[1:]}; see {self.prog} --help")

    def path(self, flag: str, **more: Any) -> None:
        """A flag that takes a path; ~ is the home folder, also in --flag=~/x."""
        self.add_argument(flag, type=_path, **more)

    def run_flags(self, out: str, parts: str) -> None:
        """The flags of a command that makes a run: folder, seed, resume and dry run."""
        self.path("--out", metavar="DIR", help=f"the folder (default: {out})")
        self.seed()
        self.add_argument("--resume", action="store_true", help="continue the run in the folder")
        self.add_argument("--dry-run", action="store_true", help=f"show {parts}, time and memory; write nothing")

    def seed(self) -> None:
        """The flag of the seed."""
        self.add_argument("--seed", type=int, metavar="N", help="seed of all random numbers (default: 0)")

    def numbers(self, flag: str, **more: Any) -> None:
        """A flag that takes whole numbers joined by commas."""
        self.add_argument(flag, type=whole_numbers, metavar="N,N", **more)

    def names(self, flag: str, default: Sequence[str], **more: Any) -> None:
        """A flag that takes names joined by commas."""
        self.add_argument(flag, type=lambda text: tuple(text.split(",")), default=tuple(default), metavar="A,B", **more)

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
        self.add_argument("words", nargs="*", help=argparse.SUPPRESS)
        try:
            args, rest = self.parse_known_intermixed_args(before)
        except SystemExit:  # --help; mistakes are CarvErrors
            return None
        self.refuse_unknown(rest if self.takes_words else [*rest, *args.words, *literal])
        args.command, args.given = shlex.join([*self.prog.split(), *words]), [*args.words, *literal]
        args.options = [w for w in args.words if re.match(r"[A-Za-z_][\w.]*=", w)]
        args.words = [w for w in args.words if w not in args.options] + literal
        return args

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
    """A command's own flags with their values, without what `Parser.read` adds."""
    return {name: value for name, value in vars(args).items() if name not in ("words", "options", "given", "command")}


def the_word(words: Sequence[str], what: str, example: str, missing: str) -> str:
    """The single positional word; CarvError where there are several, or none: then what is `missing`."""
    word = one_word(words, what, example)
    if word is None:
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


def check_budget(seconds: float, flag: str) -> None:
    """CarvError unless a number of seconds is above 0 and finite."""
    if not 0 < seconds < float("inf"):
        raise CarvError(f"{flag} is {seconds:g}; give seconds above 0, such as {flag} 60")


def whole_numbers(text: str) -> tuple[int, ...]:
    """Read "4,1,2" as (1, 2, 4)."""
    if not all(re.fullmatch("[0-9]+", part) for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers; join them by commas, such as 1,2,4")
    return tuple(sorted({int(part) for part in text.split(",")}))


def _path(text: str) -> Path:
    try:
        return expanded(text)
    except CarvError as error:  # a ValueError, in whose place argparse would say its own
        raise argparse.ArgumentTypeError(str(error)) from error


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
        new = form.new(taken)
        if new != [flag, *taken]:
            print(f"note: {' '.join([flag, *taken])} is now written {' '.join(new)}", file=sys.stderr)
        out += new
    return out
