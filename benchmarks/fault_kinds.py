"""Faults of the machine: what each does to a process before or while it works."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Hook = Callable[[], None]


@dataclass(frozen=True)
class Measured:
    """What the undisturbed work took: seconds, and bytes on the disk."""

    seconds: float
    size: int


def _nothing(rng: random.Random, whole: Measured) -> Hook:
    return lambda: None


def mount(folder: Path, size: int) -> bool:
    """A small disk of its own at `folder`; False where this user may mount none."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


def unmount(folder: Path) -> None:
    """Take the small disk away, with what is on it."""
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def enlarge(folder: Path) -> None:
    """Free space on the small disk."""
    subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True, capture_output=True)


def _full(rng: random.Random, whole: Measured) -> Hook:
    """A limit on the size of each file, for where no disk can be mounted."""
    limit = 1024 + int(whole.size * rng.random() ** 2 / 2)  # what is said takes some of it

    def hook() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return hook


def _eio(rng: random.Random, whole: Measured) -> Hook:
    """An I/O error at one of the first 24 times that something is written, put in place or handed to the disk."""
    left = rng.randrange(24)

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal left
            left -= 1
            if left == -1:
                name = args[0] if isinstance(args[0], (str, os.PathLike)) else None
                raise OSError(errno.EIO, os.strerror(errno.EIO), *([os.fspath(name)] if name else []))
            return real(*args, **more)

        return call

    def hook() -> None:
        os.fsync, os.replace = failing(os.fsync), failing(os.replace)
        Path.write_bytes = failing(Path.write_bytes)  # type: ignore[method-assign]

    return hook


def _clock(rng: random.Random, whole: Measured) -> Hook:
    """The clock of the day goes back an hour once."""
    back_at = time.time() + rng.uniform(0, whole.seconds)

    def hook() -> None:
        real = time.time
        time.time = lambda: real() - 3600 * (real() > back_at)

    return hook


def _slow(rng: random.Random, whole: Measured) -> Hook:
    """Each hand-over to the disk takes 50 ms."""

    def hook() -> None:
        real = os.fsync
        os.fsync = lambda handle: time.sleep(0.05) or real(handle)

    return hook


def _memory(rng: random.Random, whole: Measured) -> Hook:
    """At most some MiB more than there are."""
    more = rng.randrange(64 * 2**20)

    def hook() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))

    return hook


# name -> what makes the hook that a child calls before it works; "kill" and "full" are struck from outside too
KINDS: dict[str, Callable[[random.Random, Measured], Hook]] = {
    "kill": _nothing, "full": _full, "eio": _eio, "clock": _clock, "slow": _slow, "memory": _memory,
}  # fmt: skip
