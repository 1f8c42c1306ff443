"""The one exception that a user is meant to read."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


class CarvError(ValueError):
    """Something the user can mend: one sentence that names what is wrong and the fix.

    The command line prints the sentence and exits with status 2, without a traceback.
    """


def first_line(error: BaseException, limit: int = 160) -> str:
    """The first line of an error's message, cut at `limit` characters, no full stop; its class if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:limit].rstrip(" .:") if lines else type(error).__name__


def shown(value: object, most: int = 80) -> str:
    """A value as an error quotes it: its repr, cut where it is long; a tuple as YAML writes it."""
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's `main` and exit with its status; a CarvError becomes its sentence, and status 1."""
    try:
        sys.exit(main())
    except CarvError as error:
        sys.exit(str(error))
