"""One of several processes that distil together; started by test_ranks.py with the launcher's environment."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from small import small
from torch import Tensor

from carv_3d.runs.checkpoint import load_checkpoint, save_checkpoint
from carv_3d.runs.ranks import AccelerateRanks, Ranks, join

STEPS = 3


def main(folder: Path) -> None:
    ranks: Any = join(cpu=True)
    assert isinstance(ranks, AccelerateRanks)
    averaged: list[tuple[list[Tensor], list[Tensor]]] = []
    average = ranks.average

    def watched(gradients: Iterable[Tensor]) -> None:
        gradients = list(gradients)
        before = [g.clone() for g in gradients]
        average(gradients)
        averaged.append((before, [g.clone() for g in gradients]))

    ranks.average = watched
    distillation = small(ranks, stratify="global", num_draws=4, batch_size=2, proposal="adaptive")
    for _ in range(STEPS):
        distillation.train_step()
    state = distillation.state_dict()
    if ranks.first:
        save_checkpoint(folder / "checkpoint", state)
    again = small(ranks, stratify="global", num_draws=4, batch_size=2, proposal="adaptive")
    ranks.gather(None)  # it is written
    again.load_state_dict(load_checkpoint(folder / "checkpoint")[0])
    for each in (distillation, again):
        each.train_step()
    whole = {
        "rank": ranks.rank,
        "world_size": ranks.world_size,
        "averaged": averaged,
        "generator": distillation.generator.state_dict(),
        "fake": distillation.fake.state_dict(),
        "again": again.generator.state_dict(),
        "gathered": ranks.gather({"rank": ranks.rank}),
    }
    torch.save(whole, folder / f"rank-{ranks.rank}.pt")
    ranks.gather(None)
    assert len(load_checkpoint(folder / "checkpoint")[0]["ranks"]) == 2
    ranks.close()
    assert Ranks().gather(1) == [1]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
