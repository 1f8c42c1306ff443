"""One line of what `carv doctor` reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Finding:
    """One line of the report. `needed`: the main job (carv generate with carv-tiny) cannot run without it."""

    name: str
    found: bool
    detail: str
    fix: str = ""
    needed: bool = False
