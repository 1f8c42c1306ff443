"""Options: dataclasses read strictly from YAML and the command line, and values that are annealed."""

from __future__ import annotations

from typing import Any

from carv_3d import moved


def __getattr__(name: str) -> Any:
    """Names of before the packages, of the module carv_3d/config.py."""
    return moved.attribute(__name__, name, warn=True)
