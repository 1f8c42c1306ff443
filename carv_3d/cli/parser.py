"""What every command's arguments are read by."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from carv_3d.errors import CarvError


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one sentence with the nearest right option, raised as CarvError.

    Options are not abbreviated, and descriptions keep their lines, unless it is told otherwise.
    """

    def __init__(self, **more: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **more})

    def error(self, message: str) -> NoReturn:
        raise CarvError(f"{message[0].lower()}{message[1:]}; see {self.prog} --help")

    def read(self, words: Sequence[str], intermixed: bool = False) -> argparse.Namespace | None:
        """The arguments; None where --help was asked for and shown. Raises CarvError for an unknown option.

        intermixed: options may stand between the positional words.
        """
        try:
            parse = self.parse_known_intermixed_args if intermixed else self.parse_known_args
            args, rest = parse(list(words))
        except SystemExit:  # --help; mistakes are CarvErrors
            return None
        self.refuse_unknown(rest)
        return args

    def refuse_unknown(self, words: Sequence[str]) -> None:
        """Raise for leftover words that look like options."""
        known = [option for action in self._actions for option in action.option_strings]
        for word in words:
            name = word.partition("=")[0]
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
            raise CarvError(f"unknown option {name}; {hint}")


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that are key=value, and the others."""
    overrides = [w for w in words if re.match(r"[A-Za-z_][\w.]*=", w)]
    return overrides, [w for w in words if w not in overrides]
