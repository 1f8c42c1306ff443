"""The processes that train together. One process alone needs nothing; more of them need Hugging Face's accelerate."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from carv_3d.errors import CarvError, first_line, require


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
        try:
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


def launched() -> int:
    """How many processes the launcher started."""
    try:
        return int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        return 1


def join(cpu: bool = False) -> Ranks:
    """The group that this process was started in; accelerate is imported only if there are several."""
    return AccelerateRanks(cpu) if launched() > 1 else Ranks()
