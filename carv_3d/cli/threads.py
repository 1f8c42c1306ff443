"""How many threads a command computes with, and how they wait: settled once, before torch is loaded.

OpenMP's threads spin while they wait for each other. Next to another busy process one of them is often not running,
and the others burn their time until it is: a step of `carv generate` then takes many times as long. Threads that sleep
instead cost nothing measurable on an idle machine.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MOST_THREADS = 4096  # beyond it a pool's own memory runs out
POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def available_cores(cgroup: Path = CGROUP) -> int:
    """Cores that this process may use: of its affinity mask, and no more than its cgroup's quota; at least 1."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        cores = os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def settle_threads(environment: MutableMapping[str, str] = os.environ, cgroup: Path = CGROUP) -> None:
    """Give every pool of threads the size of `available_cores`, and let OpenMP's threads sleep while they wait.

    What the user has set stays; a user's OMP_NUM_THREADS holds for the other pools too, or the first of its list, one
    for each level of nesting. What is no number of threads is set aside: numba would show a traceback for it. Does
    nothing once torch is loaded: its pools have been made by then.
    """
    if "torch" in sys.modules:
        return
    outermost = environment.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    cores = outermost if _is_count(outermost) else str(available_cores(cgroup))
    for name in POOLS:
        levels = environment.get(name, "").split(",") if name == "OMP_NUM_THREADS" else [environment.get(name, "")]
        if not all(map(_is_count, levels)):
            environment[name] = cores
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _is_count(text: str) -> bool:
    return text.strip().isdecimal() and text.isascii() and 0 < int(text) <= MOST_THREADS


def _quota(cgroup: Path) -> float | None:
    """Cores' worth of time that the control group grants, version 2 or 1; None without a limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return None
    return cores if cores > 0 else None
