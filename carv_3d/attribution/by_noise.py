"""Draws shared out among the training images by their noise, at the same number of draws in all: `allocation=noise`.

Each image has PILOT draws first, in two independent groups p_1, p_2. Half of |p_1 - p_2|^2 estimates the variance of
one, roughly: draws have heavy tails, and an image that showed little by luck would have few draws for much noise. So
estimates are drawn towards their mean where the pilot does not show that images differ, see `deviations`. The other
N (K - PILOT) draws are in proportion to the roots (`core.allocation.neyman`). With r_g the mean of an image's other
draws in group g,

    f_g = w p_g + (1 - w) r_g,        w = PILOT / K for every image.

The weight depends on no draw, and given the pilot the mean of r_g is the exact gradient, however many draws it has. So
f_g is unbiased, and the groups' errors are uncorrelated, which standard errors need. (Weights by the number of draws
would give less to a pilot that was far from the mean, and would bias what is skewed.) With s_i^2 the variance of an
image's single draw, and independent draws,

    sum_i Var = w^2 sum s_i^2 / PILOT + (1 - w)^2 (sum s_i)^2 / (N (K - PILOT)),

where equal draws have sum s_i^2 / K: the least, where every s_i is known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from carv_3d.attribution.features import FeatureMaker, LatentItems, item_draws
from carv_3d.attribution.options import FeatureOptions
from carv_3d.core.allocation import neyman

ROLE = "rest"  # of the draws after the pilot's, which are a training image's own


class NoiseMaker(FeatureMaker):
    """As `FeatureMaker`, of items whose pilot is made; an item's row has as many draws as its noise asks for.

    Attributes:
        rest: (N) how many draws each item has besides the pilot's.
    """

    def __init__(self, options: FeatureOptions, pilot_maker: FeatureMaker, pilot: Any) -> None:
        """Of the same model, layers, projection and timesteps as the pilot.

        Args:
            options: with K, the mean number of draws of an item, the pilot's included.
            pilot_maker: with the pilot's draws.
            pilot: (N, groups, dim), complete, a tensor or a (memory-mapped) array; rows are read as they are needed.
        """
        super().__init__(pilot_maker.model, options, ROLE, pilot_maker.proposal, pilot_maker.projection)
        self.share_layers(pilot_maker)
        self._pilot, first, draws = pilot, pilot_maker.options.draws.K, options.draws
        self._share = first / draws.K  # w
        unit = draws.groups * draws.design.group_size
        self.rest = neyman(deviations(pilot).tolist(), len(pilot) * (draws.K - first), unit)

    def batches(self, pending: list[int]) -> Iterator[list[int]]:
        """Those of equally many draws together."""
        alike = defaultdict(list)
        for index in pending:
            alike[self.rest[index]].append(index)
        for K, group in alike.items():
            size = self._at_once(K)
            yield from (group[begin : begin + size] for begin in range(0, len(group), size))

    def item_rows(self, items: LatentItems, batch: list[int]) -> Tensor:
        """(N, groups, dim) of a batch of items of equally many draws: w p + (1 - w) r."""
        o, layout = self.options, replace(self.options.draws, num_draws=self.rest[batch[0]])
        keys, latents = [items.key(i) for i in batch], [items.latents(i) for i in batch]
        drawn = [item_draws(k, self.role, layout, self.proposal, tuple(z.shape), o.seed) for k, z in zip(keys, latents)]
        rows = self.from_draws(keys, latents, [items.condition(i) for i in batch], drawn)
        return torch.lerp(rows, torch.as_tensor(np.asarray(self._pilot[batch])).to(rows), self._share)

    def own_metadata(self) -> dict[str, Any]:
        """As of `FeatureMaker`, and that draws are shared out."""
        return {**super().own_metadata(), "allocation": "noise", "pilot": round(self._share * self.options.draws.K)}


def deviations(pilot: Any) -> Tensor:
    """(N,) what of each item's standard deviation is shown, float64, from a pilot (N, 2, dim) as of `NoiseMaker`.

    Estimates v_i = |p_1 - p_2|^2 / 2 are drawn towards their mean: m + B (v_i - m), B = Cov(|p_1|^2, |p_2|^2) / Var(v),
    the part of their variance that both groups of an item agree on. (The best linear prediction, as far as |p|^2 is
    noise.) One standard error is taken off the covariance; so B is 0, and draws are equal, where the items are too
    few or too alike for more.
    """
    squares, half = [], []
    for row in pilot:
        p = torch.as_tensor(row).double()
        squares.append(p.square().sum(-1))
        half.append((p[0] - p[1]).square().sum() / 2)
    a, v = torch.stack(squares), torch.stack(half)
    n, spread = len(v), float(v.var()) if len(v) > 1 else 0.0
    if n < 2 or spread == 0:
        return v.mean().sqrt().expand(n)
    products = (a[:, 0] - a[:, 0].mean()) * (a[:, 1] - a[:, 1].mean())
    shown = float(products.sum() / (n - 1) - products.std() / n**0.5) / spread
    return (v.mean() + min(max(shown, 0.0), 1.0) * (v - v.mean())).clamp_min(0.0).sqrt()
