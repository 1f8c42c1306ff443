"""Seeds and generators, each derived from one seed and from what it is for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_for(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose, so that one more draw for one does not shift the others."""
    state = np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1, np.uint64)
    return int(state[0]) % 2**63


def keyed_generator(seed: int, *key: str | int) -> torch.Generator:
    """A CPU generator whose state depends on `seed` and `key` alone."""
    digest = hashlib.sha256("\0".join([str(seed), *map(str, key)]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def step_seed(seed: int, step: int) -> int:
    """The seed of one training step, for loops that keep no generator between steps."""
    return (seed * 1_000_003 + step) % 2**63


def batch_seed(seed: int, batch: int, purpose: int) -> int:
    """The seed of one purpose in one batch of a benchmark; batches from -1000 on, purposes below 1009."""
    return (seed * 1_000_003 + (batch + 1000) * 1009 + purpose) % 2**62


def rank_seed(seed: int, rank: int) -> int:
    """The seed of one process among several; the first one's is `seed` itself."""
    return seed + rank


class OwnGlobals:
    """torch's global generators as one run alone would have them, for code that takes no generator.

    Runs that share a process do not disturb each other, nor their host:

        own = OwnGlobals(seed, device)
        with own.in_use():
            layer = torch.nn.Linear(3, 4)
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        """Seed the CPU's generator, and that of `device` where it is CUDA."""
        index = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
        self._cuda = [index] if device.type == "cuda" else []
        fresh = [torch.Generator(torch.device("cuda", i)) for i in self._cuda]
        self._state: dict[str, Any] = {
            "torch": torch.Generator().manual_seed(seed).get_state(),
            "cuda": [g.manual_seed(seed).get_state() for g in fresh],
        }

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within the block the global generators are this run's; afterwards they are as they were."""
        with torch.random.fork_rng(self._cuda):
            torch.set_rng_state(self._state["torch"])
            for i, state in zip(self._cuda, self._state["cuda"]):
                torch.cuda.set_rng_state(state, i)
            try:
                yield
            finally:
                self._state = {
                    "torch": torch.get_rng_state(),
                    "cuda": [torch.cuda.get_rng_state(i) for i in self._cuda],
                }

    def state_dict(self) -> dict[str, Any]:
        """Tensors only."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`, or what version 0.1.0 saved of all devices; CUDA's only where both have it."""
        cuda = [s.cpu() for s in state["cuda"]]
        at = [cuda[i] if i < len(cuda) else cuda[0] for i in self._cuda] if cuda else self._state["cuda"]
        self._state = {"torch": state["torch"].cpu(), "cuda": at}
