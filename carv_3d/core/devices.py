"""Where a run computes, and the memory that it took."""

from __future__ import annotations

import ctypes
import sys

import torch

from carv_3d.errors import CarvError


def choose_device(name: str) -> torch.device:
    """The device of that name: "auto" is CUDA where there is one; CarvError where CUDA is asked for and absent."""
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


def keep_freed_memory() -> bool:
    """Let this process keep what it frees for its next tensors of the CPU; False where there is no glibc.

    glibc maps each large block anew and gives it back, and to clear those pages takes a third of a step of a scene
    whose samples fill hundreds of MiB (carv-tiny-hash-grid). The price: the process holds its peak
    until it ends.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):  # musl's mallopt does nothing
        return False
    M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1  # of malloc.h
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, -1))
