"""A run of `carv distill` on a small model: its words, what it leaves, and whether two of them are equal."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SMALL = ["batch_size=2", "num_draws=2", "preview_prompts=2", "preview_every=2", "fake_updates=1", "device=cpu"]


def words(place: Path, model: Path | str, *more: str) -> list[str]:
    """The command, with the prompts next to the folder."""
    return ["distill", str(model), *SMALL, f"prompts={place / 'prompts.txt'}", *more]


def rows(folder: Path | str) -> list[dict[str, str]]:
    """metrics.csv without its seconds."""
    with open(f"{folder}/metrics.csv", newline="") as handle:
        return [{k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(handle)]


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal to the bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)
