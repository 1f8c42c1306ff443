"""How much memory is free, and what is too much for it: said before the work, where the system might end the process.

Linux grants more than there is and kills whoever then touches it, so that no error could be caught.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from carv_3d.errors import CarvError

UNIMPORTANT = 2**28  # bytes below which nobody asks
PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
GROUP_FILES = (  # limit, used, statistics; of version 2, and of version 1
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


def free_memory(device: torch.device | None = None, proc: Path = PROC, cgroup: Path = CGROUP) -> int | None:
    """Bytes that may still be taken.

    On the CPU the least of what the machine has available, what the control group leaves, and what RLIMIT_AS leaves.

    Args:
        device: where; the CPU if None.
        proc: the system's files about memory and this process.
        cgroup: those of control groups.

    Returns:
        None where the system does not say.
    """
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    known = [_meminfo(proc), _control_group(cgroup), _address_space(proc)]
    return min((max(0, amount) for amount in known if amount is not None), default=None)


def check_memory(parts: Mapping[str, int], fix: str, device: torch.device | None = None) -> None:
    """CarvError unless there is memory for all parts.

    Args:
        parts: bytes, by what takes them ("data.n_test_views = 9000").
        fix: the last words of the sentence, such as "lower it".
        device: where; the CPU if None.

    Raises:
        CarvError: naming the largest part with its bytes, the sum, and what is free.
    """
    total = sum(parts.values())
    if total < UNIMPORTANT:
        return
    free = free_memory(device)
    if free is not None and total > free:
        largest = max(parts, key=lambda name: parts[name])
        whole = f"; all that is needed at once is {amount(total)}" if parts[largest] < total else ""
        raise CarvError(f"{largest} takes at least {amount(parts[largest])} and {amount(free)} are free{whole}: {fix}.")


def amount(size: int) -> str:
    """Bytes in a unit to read, and as they are: "2.0 GiB (2,147,483,648 bytes)"."""
    return f"{short_amount(size)} ({size:,} bytes)"


def short_amount(size: int) -> str:
    """Bytes in a unit to read: "2.0 GiB"."""
    unit, words = (2**30, "GiB") if size >= 2**30 else (2**20, "MiB")
    return f"{size / unit:,.1f} {words}"


def _meminfo(proc: Path) -> int | None:
    return _field(proc / "meminfo", "MemAvailable:", 1024)


def _control_group(cgroup: Path) -> int | None:
    for limit_file, used_file, statistics in GROUP_FILES:
        try:
            limit = int((cgroup / limit_file).read_text())
            used = int((cgroup / used_file).read_text())
        except (OSError, ValueError):  # ValueError: "max"
            continue
        return limit - used + (_field(cgroup / statistics, "inactive_file", 1) or 0)  # which the kernel takes back
    return None


def _address_space(proc: Path) -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    return limit - (_field(proc / "self" / "status", "VmSize:", 1024) or 0)


def _field(path: Path, name: str, unit: int) -> int | None:
    """The number on the line that begins with `name`, in bytes."""
    try:
        lines = path.read_text().splitlines()
        return next(int(line.split()[1]) * unit for line in lines if line.split()[:1] == [name])
    except (OSError, ValueError, IndexError, StopIteration):
        return None


@contextmanager
def collection_paused() -> Iterator[None]:
    """Python's collector of reference cycles does not run: it takes a tenth of the time of large imports."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
