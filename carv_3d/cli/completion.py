"""Completion of commands and flags in a shell, by argcomplete: eval "$(register-python-argcomplete carv)"."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping
from typing import NoReturn

VARIABLE = "_ARGCOMPLETE"  # is set by the shell that asks


def whole_parser(commands: Mapping[str, str]) -> argparse.ArgumentParser:
    """One parser of all commands, for completion alone. commands: name -> help."""
    whole = argparse.ArgumentParser("carv", allow_abbrev=False)
    whole.add_argument("--version", action="store_true")
    below = whole.add_subparsers()
    for name, text in commands.items():
        parser = importlib.import_module(f"carv_3d.cli.{name}").parser()
        below.add_parser(name, parents=[parser], add_help=False, help=text, prog=parser.prog, usage="")
    return whole


def complete(commands: Mapping[str, str]) -> NoReturn:
    """Answer the shell and end the process; with status 1 where argcomplete is not installed."""
    try:
        import argcomplete
    except ImportError:
        sys.exit(1)
    argcomplete.autocomplete(whole_parser(commands), always_complete_options=True)
    sys.exit(1)
