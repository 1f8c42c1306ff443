"""Features: for each item the projected gradient of its diffusion loss, from K draws of (t, eps), one backward a group.

    phi_ig = P 1/K' sum_k (p/q)(t_k) w(t_k) dloss(z_i, t_k, eps_k)/dtheta        g = 1 .. groups, K' = K / groups

One item at a time: its draws are the batch. On a CPU that costs, from four draws on, the same seconds a draw as
`torch.func.vmap` over items (measured with carv-tiny's UNet, one thread: 55 and 52 ms a draw). It needs memory for one
gradient instead of one for every item of a batch, and gives the same bits however items are shared out.

Draws are keyed by what they are for, so that nothing depends on batches, on shards or on the order of the work. Ports
of TRAK to diffusion draw one table of timesteps and noises and share it by the slot in the batch: scores then hold a
covariance of the noise that two items share, and change with the batch size.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from carv_3d.attribution.losses import sample_losses
from carv_3d.attribution.model import GradientModel
from carv_3d.attribution.options import FeatureOptions, GroupedDrawOptions
from carv_3d.attribution.projection import Projection
from carv_3d.attribution.store import RowStore
from carv_3d.core.costs import CostMeter
from carv_3d.core.estimator import Draws
from carv_3d.core.proposals import TimestepProposal, make_proposal
from carv_3d.core.seeds import keyed_generator
from carv_3d.errors import CarvError

FLUSH_EVERY = 64  # items; what a power cut (no kill) may cost


class LatentItems(Protocol):
    """What features are taken of."""

    def __len__(self) -> int: ...
    def key(self, index: int) -> str:
        """An item's own name, which its draws depend on."""
        ...

    def latents(self, index: int) -> Tensor:
        """(C, h, w)."""
        ...

    def condition(self, index: int) -> Tensor | None:
        """(L, D), the embedded caption; None for a model that takes none."""
        ...

    def fingerprint(self) -> str:
        """Of everything in the items, for a store's metadata."""
        ...


class FeatureMaker:
    """Features of one model under one set of options.

    proposal: of the timesteps; uniform unless given. Whatever it is, p/q keeps the expectation.
    role: keys the draws; the same item has other draws in another role.

    Attributes:
        meter: the seconds of "gradient" and "project", and counts of items and nfe.
    """

    def __init__(
        self,
        model: GradientModel,
        options: FeatureOptions | None = None,
        role: str = "train",
        proposal: TimestepProposal | None = None,
        projection: Projection | None = None,
    ) -> None:
        self.model, self.role = model, role
        self.options = o = options or FeatureOptions()
        last = model.schedule.num_train_timesteps - 1
        self._range = (o.draws.min_step, min(o.draws.max_step, last))
        self.proposal = proposal or make_proposal("uniform", model.schedule, "uniform", *self._range)
        self.meter = CostMeter(model.device)
        sizes = [p.numel() for p in model.parameters]
        self.projection = projection or Projection(sum(sizes), o.dim, o.seed, model.device)
        self._sizes = sizes

    def feature(self, key: str, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """The gradients of one item, projected.

        Args:
            key: names the item; its draws follow from it.
            z: (C, h, w), latents.
            condition: (L, D), or None.

        Returns:
            (groups, dim) float32 on the model's device.

        Raises:
            CarvError: a gradient that is not finite.
        """
        o = self.options
        groups = item_draws(key, self.role, o.draws, self.proposal, tuple(z.shape), o.seed)
        with self.model.trainable() as parameters:
            rows = [self._group(key, z, condition, draws, parameters) for draws in groups]
        self.meter.count(items=1, nfe=o.draws.K)
        return torch.stack(rows)

    def _group(self, key: str, z: Tensor, condition: Tensor | None, draws: Draws, parameters: list[Tensor]) -> Tensor:
        with self.meter.phase("gradient"):
            loss = self.loss(z, condition, draws)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        with self.meter.phase("project"):
            row = self.projection(gradients, self._sizes)
            if not bool(torch.isfinite(row).all()):
                raise CarvError(
                    f"the gradient of {key!r} is not finite (timesteps {draws.t.flatten().tolist()}): leave this item "
                    "out, or load the model in full precision; what is finished is kept."
                )
        return row

    def loss(self, z: Tensor, condition: Tensor | None, draws: Draws) -> Tensor:
        """The scalar that is differentiated: 1/K' sum_k (p/q) w loss_k, of one item's draws (1, K')."""
        model, o = self.model, self.options
        device = model.device
        t = draws.t[0].to(device)
        n = len(t)
        eps = draws.eps[0].to(device, z.dtype)
        copies = z.to(device).expand(n, *z.shape)
        cond = None if condition is None else condition.to(device).expand(n, *condition.shape)
        z_t = model.schedule.add_noise(copies, eps, t)
        values = sample_losses(o.output, model.predict(z_t, t, cond), model.target(copies, eps, t))
        weights = model.schedule.w(t, o.weighting).to(values)
        if draws.weights is not None:
            weights = weights * draws.weights[0].to(values)
        return (weights * values).mean()

    def metadata(self, items: LatentItems) -> dict[str, Any]:
        """What a store of these features depends on."""
        return {
            "model": self.model.fingerprint(),
            "parameters": self.projection.num_parameters,
            "items": items.fingerprint(),
            "role": self.role,
            "proposal": f"{self.proposal.name} {zlib.crc32(self.proposal.q.double().cpu().numpy().tobytes()):08x}",
            "options": self.options.stored(),
        }

    def open_store(
        self, folder: Any, items: LatentItems, keys: Sequence[str] = (), earlier: Iterable[Any] = ()
    ) -> RowStore:
        """The store of these items' features in `folder`, new or resumed; keys and earlier as of RowStore."""
        shape = (self.options.draws.groups, self.projection.dim)
        return RowStore(folder, self.metadata(items), len(items), shape, keys, earlier)

    def fill(
        self,
        store: RowStore,
        items: LatentItems,
        shard: int = 0,
        shards: int = 1,
        show: Callable[[int, int], bool] | None = None,
    ) -> bool:
        """Makes the rows that are missing of this shard; True when none is left.

        Args:
            store: of these items.
            items: latents, conditions and keys.
            shard: which, from 0.
            shards: how many there are.
            show: called as show(done, total) after each item, of this shard; where it returns True the work stops
                there, and what is finished is in the store, as it is when an exception or a kill ends it.

        Raises:
            CarvError: as `feature`.
        """
        pending = store.pending(shard, shards)
        total = len(range(shard, store.count, shards))
        try:
            for n, index in enumerate(pending.tolist()):
                row = self.feature(items.key(index), items.latents(index), items.condition(index))
                store.write(index, row.cpu().numpy().astype(np.float32))
                if (n + 1) % FLUSH_EVERY == 0:
                    store.flush()
                if show is not None and show(total - len(pending) + n + 1, total) and n + 1 < len(pending):
                    return False
        finally:
            store.flush()
        return True


def item_draws(
    item: str, role: str, options: GroupedDrawOptions, proposal: TimestepProposal, shape: tuple[int, ...], seed: int
) -> list[Draws]:
    """The item's groups of draws, on the CPU.

    Args:
        item: its key.
        role: "train", "query", ... Items of equal key have other draws in another role, so that no score compares an
            item with itself under the same noise.
        options: K, groups and how draws are laid out.
        proposal: of timesteps.
        shape: of the latents.
        seed: of all draws.

    Returns:
        Of each group, t and p/q (1, K / groups) and eps (1, K / groups, *shape).
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
