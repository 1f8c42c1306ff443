"""One line of what `carv doctor` reports, and what goes into the lines of both of its reports."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from dataclasses import dataclass


@dataclass
class Finding:
    """One line of the report. `needed`: the main job (carv generate with carv-tiny) cannot run without it."""

    name: str
    found: bool
    detail: str
    fix: str = ""
    needed: bool = False


def python(fix: str) -> Finding:
    """Whether this Python is new enough."""
    detail = f"{platform.python_version()} ({sys.executable})"
    return Finding("python", sys.version_info >= (3, 10), detail, fix, True)


def installed(module: str) -> str:
    """The version of the distribution of that name."""
    try:
        return importlib.metadata.version(module.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"
