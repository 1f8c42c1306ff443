"""Offline pages: the report of a run, and the charts on every page."""

from __future__ import annotations

from typing import Any

from carv_3d import moved


def __getattr__(name: str) -> Any:
    """Names of before the packages, of the module carv_3d/report.py."""
    return moved.attribute(__name__, name, warn=True)
