"""Where a run computes."""

from __future__ import annotations

import torch

from carv_3d.errors import CarvError

DEVICES = ("auto", "cpu", "cuda")


def choose_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one; CarvError where CUDA is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise CarvError("device is cuda, but torch sees no GPU here; set device=cpu, or see carv doctor")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
