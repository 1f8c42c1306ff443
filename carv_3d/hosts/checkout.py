"""A checkout of threestudio: where it is, whether it is one, and whether the extension is in it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from carv_3d.errors import CarvError, checkout
from carv_3d.io.files import expanded

LINK = "threestudio-carv"
VARIABLE = "CARV_THREESTUDIO"


def find_checkout(named: str | None) -> Path:
    """The checkout: `named`, else the working directory where it is one, else what CARV_THREESTUDIO names.

    Raises:
        CarvError: there is none, or it is none.
    """
    if named is None and not (Path("launch.py").is_file() and Path("threestudio").is_dir()):
        named = os.environ.get(VARIABLE)
        if not named:
            raise CarvError(
                "no threestudio checkout is known: run this in its folder, name it by --threestudio PATH, or set "
                f"{VARIABLE}"
            )
    root = expanded(named or ".").absolute()
    check_checkout(root)
    return root


def check_checkout(root: Path) -> None:
    """Refuses a folder that is no threestudio checkout, or one from before extensions.

    Raises:
        CarvError: naming what is missing.
    """
    if not root.is_dir():
        raise CarvError(f"there is no folder {root}; name the folder of a threestudio checkout (it holds launch.py).")
    if not (root / "launch.py").is_file() or not (root / "threestudio" / "__init__.py").is_file():
        raise CarvError(f"{root} is no threestudio checkout: it lacks launch.py or threestudio/__init__.py.")
    if not (root / "custom").is_dir():
        raise CarvError(f"{root} has no folder custom/, so it is older than extensions: update it (git pull).")


def link_problem(root: Path) -> str:
    """Why the extension is not in the checkout; empty if it is."""
    here = root / "custom" / LINK
    if not os.path.lexists(here):
        return f"{here} is not there"
    if not (here / "__init__.py").is_file():
        return f"{here} leads to {os.path.realpath(here)}, where no extension is"
    return ""


def how_to_link(root: Path) -> str:
    """The command that puts the extension into the checkout."""
    here = checkout()
    if here is None:  # a wheel brings the extension along
        return f"ln -s '{sys.prefix}/share/carv_3d/{LINK}' '{root}/custom/'"
    return f"in {here}, with threestudio's environment active: ./install.sh --threestudio {root}"
