"""The processes that train together. One process alone needs nothing; more of them need Hugging Face's accelerate."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from carv_3d.errors import CarvError, first_line, require

QUIET = 5.0  # seconds of waiting before it is said
JOINING = 300.0  # seconds that the first process may need until it listens: it imports as much as the others


class Ranks:
    """One process alone; what `AccelerateRanks` does among several."""

    rank = 0
    world_size = 1
    device: torch.device | None = None
    """This process's own device; None where the options choose."""

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def average(self, gradients: Iterable[Tensor]) -> None:
        """Each tensor becomes its mean over the processes, in place."""

    def gather(self, value: Any) -> list[Any]:
        """Plain data of every process, on each of them, in the order of ranks."""
        return [value]

    def close(self) -> None:
        """Leave the group."""


class AccelerateRanks(Ranks):
    """The processes that `accelerate launch` or torchrun started: NCCL on CUDA, gloo on CPUs."""

    def __init__(self, cpu: bool = False) -> None:
        """cpu: on the CPU, also where there are GPUs. Raises CarvError without accelerate, or where none can join."""
        accelerate = require("accelerate", "distill", "a run in several processes")
        address = ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
        if os.environ.get("RANK", "0") != "0":
            with _said(f"waiting for the first process at {address}, for {JOINING:g} s at most"):
                wait_for_listener(address, JOINING)
        try:
            with _said(f"waiting for all {launched()} processes to join at {address}, for 30 minutes at most"):
                self._accelerator: Any = accelerate.Accelerator(cpu=cpu)
        except (ValueError, RuntimeError) as error:  # no address, or nobody there
            raise CarvError(
                f"WORLD_SIZE asks for {launched()} processes, which cannot join ({first_line(error)}); start them by "
                "accelerate launch, or unset WORLD_SIZE for one"
            ) from error
        self.rank = int(self._accelerator.process_index)
        self.world_size = int(self._accelerator.num_processes)
        self.device = torch.device(self._accelerator.device)

    def average(self, gradients: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over all processes, in place."""
        for g in gradients:
            g.copy_(self._accelerator.reduce(g, reduction="mean"))

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        from accelerate.utils import gather_object

        out: list[Any] = gather_object([value])
        return out

    def close(self) -> None:
        """Leave the process group."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def wait_for_listener(address: str, seconds: float) -> None:
    """Return once somebody listens at HOST:PORT, or where it is no such address, which torch has words for.

    Raises:
        CarvError: nobody did for so long.
    """
    host, _, port = address.rpartition(":")
    end = time.monotonic() + seconds
    while host and port.isdecimal() and int(port) < 2**16:
        try:
            socket.create_connection((host, int(port)), timeout=QUIET).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise CarvError(
                    f"nobody has listened at {address} for {seconds:g} s ({first_line(error)}), where WORLD_SIZE's "
                    "first process must; start all of them by accelerate launch, or unset WORLD_SIZE for one"
                ) from error
        time.sleep(0.2)


@contextmanager
def _said(sentence: str) -> Iterator[None]:
    """Say what is waited for, if the block takes long."""
    timer = threading.Timer(QUIET, lambda: print(f"carv: {sentence}", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def launched() -> int:
    """How many processes the launcher started."""
    try:
        return int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        return 1


def join(cpu: bool = False) -> Ranks:
    """The group that this process was started in; accelerate is imported only if there are several."""
    return AccelerateRanks(cpu) if launched() > 1 else Ranks()
