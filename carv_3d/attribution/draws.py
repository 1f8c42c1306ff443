"""Draws keyed by what they are for, so that nothing depends on batches, on shards or on the order of the work.

Ports of TRAK to diffusion draw one table of timesteps and noises and share it by the slot in the batch: scores then
hold a covariance of the noise that two items share, and change with the batch size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from carv_3d.attribution.options import GroupedDrawOptions
from carv_3d.core.estimator import Draws
from carv_3d.core.proposals import TimestepProposal
from carv_3d.core.seeds import keyed_generator


def item_draws(
    item: str, role: str, options: GroupedDrawOptions, proposal: TimestepProposal, shape: tuple[int, ...], seed: int
) -> list[Draws]:
    """The item's groups of draws, each with t and p/q (1, K / groups) and eps (1, K / groups, *shape), on the CPU.

    role: "train", "query", ... Items of equal key have other draws in another role, so that no score compares an
    item with itself under the same noise.
    """
    out = []
    for group in range(options.groups):
        generator = keyed_generator(seed, role, item, group)
        u = options.design.draw_u(1, options.per_group, generator)
        t, weights = proposal.sample(u)
        eps = _keyed_eps(options, shape, (seed, role, item, group))
        out.append(Draws(t, eps, weights, options.design.group_size))
    return out


def _keyed_eps(options: GroupedDrawOptions, shape: tuple[int, ...], key: tuple[int, str, str, int]) -> Tensor:
    """(1, K / groups, *shape): each pair (or single draw) from a generator of its own."""
    size = options.design.group_size
    units = [
        options.design.draw_eps(1, size, shape, keyed_generator(key[0], *key[1:], unit))
        for unit in range(options.per_group // size)
    ]
    return torch.cat(units, 1)
