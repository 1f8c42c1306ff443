"""The one exception that a user is meant to read."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MOST_CHARACTERS = 1000  # of a sentence that somebody is meant to read


class CarvError(ValueError):
    """Something the user can mend: one sentence that names what is wrong and the fix.

    The command line prints the sentence and exits with status 2, without a traceback. A sentence that quotes something
    long loses its middle: the name at its beginning and the fix at its end stay. Line breaks become spaces, and control
    characters are escaped.
    """

    def __init__(self, sentence: str = "") -> None:
        sentence = " ".join(line.strip() for line in str(sentence).splitlines())
        sentence = printable(sentence)
        half = MOST_CHARACTERS // 2
        long = len(sentence) > MOST_CHARACTERS
        super().__init__(f"{sentence[:half]} ... {sentence[-half:]}" if long else sentence)


class CarvTypeError(CarvError, TypeError):
    """A call with other arguments than the function has."""


def printable(text: str) -> str:
    r"""The text on one line, what no terminal shows escaped: control characters, and bytes of a path that is no UTF-8.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def first_line(error: BaseException, limit: int = 160) -> str:
    """The first line of an error's message, cut at `limit` characters, no full stop; its class if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:limit].rstrip(" .:") if lines else type(error).__name__


def shown(value: object, most: int = 80) -> str:
    """A value as an error quotes it: its repr, cut where it is long; a tuple as YAML writes it."""
    try:
        text = repr(list(value) if isinstance(value, tuple) else value)
    except Exception as error:  # of a foreign class; of a whole number with more digits than Python writes
        text = f"a {type(value).__name__} that cannot be shown ({first_line(error, 40)})"
    text = " ".join(line.strip() for line in text.split("\n"))
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def checkout() -> Path | None:
    """The repository's folder, where the package is used from there."""
    folder = Path(__file__).resolve().parents[1]
    return folder if (folder / "pyproject.toml").exists() else None


def install_command(extra: str) -> str:
    """The command that adds an extra to carv_3d as it is installed: from a checkout, from a file or URL, or by name."""
    if checkout() is not None:
        return f"pip install -e '{checkout()}[{extra}]'"
    try:
        text = importlib.metadata.distribution("carv-3d").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        text = None
    source = json.loads(text) if text else {}
    vcs = source.get("vcs_info", {})
    at = f"@{vcs['commit_id']}" if vcs else ""
    url = f" @ {vcs['vcs']}+{source['url']}{at}" if vcs else f" @ {source['url']}" if source else ""
    return f"pip install 'carv-3d[{extra}]{url}'"


def require(module: str, extra: str, purpose: str) -> Any:
    """The imported module; CarvError with the command where it is not installed, or does not load."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: of a compiled part
        absent = isinstance(error, ModuleNotFoundError)
        state = "is not installed" if absent else f"does not load ({first_line(error)})"
        name = module.partition(".")[0]
        raise CarvError(f"{purpose} needs {name}, which {state}: {install_command(extra)}") from error


@contextmanager
def packages(extra: str) -> Iterator[None]:
    """Within, a package that is not installed is one sentence with the command that installs `extra`."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if not name or name == "carv_3d" or name in sys.stdlib_module_names:
            raise
        raise CarvError(f"{name} is not installed: {install_command(extra)}") from error
