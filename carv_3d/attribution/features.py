"""Features: for each item the projected gradient of its diffusion loss, from K draws of (t, eps), one backward a group.

    phi_ig = P 1/K' sum_k (p/q)(t_k) w(t_k) dloss(z_i, t_k, eps_k)/dtheta        g = 1 .. groups, K' = K / groups

Gradients of all parameters are made for one item at a time: its draws are the batch. On a CPU that costs, from four
draws on, the same seconds a draw as `torch.func.vmap` over items (measured with carv-tiny's UNet, one thread: 55 and
52 ms a draw). It needs memory for one gradient instead of one for every item of a batch, and gives the same bits
however items are shared out. Gradients of the layers that `parameters` names are made for BATCH draws of several items
at once, see `layers`. Such a row then depends on its batch by the rounding of float32, below 1e-5 of its largest
number.

Draws are keyed by what they are for, so that nothing depends on batches, on shards or on the order of the work. Ports
of TRAK to diffusion draw one table of timesteps and noises and share it by the slot in the batch: scores then hold a
covariance of the noise that two items share, and change with the batch size.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from carv_3d.attribution.layers import LayerGradients, hooked_layers
from carv_3d.attribution.losses import sample_losses, with_gradient
from carv_3d.attribution.model import GradientModel
from carv_3d.attribution.options import FeatureOptions, GroupedDrawOptions
from carv_3d.attribution.projection import Projection
from carv_3d.attribution.store import RowStore
from carv_3d.core.arguments import described, fits
from carv_3d.core.costs import CostMeter
from carv_3d.core.estimator import Draws
from carv_3d.core.proposals import TimestepProposal, make_proposal
from carv_3d.core.seeds import keyed_generator
from carv_3d.errors import CarvError

FLUSH_EVERY = 64  # items; what a power cut (no kill) may cost
BATCH = 32  # draws at once, of as many items as that makes
PILOT = 16  # items of noise, for the scales of the layers


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
        parameters: those that gradients are really of: the options', or "all" where the model has no such layers.
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
        layers = hooked_layers(model.module, o.parameters)
        self.parameters = o.parameters if layers else "all"
        self._layers = LayerGradients(layers, o.seed) if layers else None
        self._sizes = [self._layers.num_features] if self._layers else [p.numel() for p in model.parameters]
        self.projection = projection or Projection(sum(self._sizes), o.dim, o.seed, model.device)

    @property
    def batch(self) -> int:
        """Items whose features are made at once."""
        return self._at_once(self.options.draws.K)

    def _at_once(self, K: int) -> int:
        """Items of K draws that make a batch."""
        return max(1, BATCH // K) if self._layers else 1

    def feature(self, key: str, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """The gradients (groups, dim) of one item, see `features`."""
        return self.features([key], [z], [condition])[0]

    def features(self, keys: Sequence[str], latents: Sequence[Tensor], conditions: Sequence[Tensor | None]) -> Tensor:
        """The gradients of some items, projected.

        Args:
            keys: name the items; an item's draws follow from its key.
            latents: (C, h, w) each.
            conditions: (L, D) each, or None each.

        Returns:
            (N, groups, dim) float32 on the model's device.

        Raises:
            CarvError: lists that do not go together, or a gradient that is not finite.
        """
        o = self.options
        check_items(keys, latents, conditions)
        drawn = [
            item_draws(key, self.role, o.draws, self.proposal, tuple(z.shape), o.seed) for key, z in zip(keys, latents)
        ]
        return self.from_draws(keys, latents, conditions, drawn)

    def from_draws(
        self,
        keys: Sequence[str],
        latents: Sequence[Tensor],
        conditions: Sequence[Tensor | None],
        drawn: Sequence[list[Draws]],
    ) -> Tensor:
        """As `features`, of draws as of `item_draws`: of each item equally many groups of equally many draws.

        Args:
            keys: name the items.
            latents: (C, h, w) each.
            conditions: (L, D) each, or None each.
            drawn: each item's groups.

        Returns:
            (N, groups, dim) float32 on the model's device.

        Raises:
            CarvError: a gradient that is not finite.
        """
        with torch.inference_mode(False), torch.enable_grad():  # whatever the caller is in
            rows = self._rows(latents, conditions, drawn)
        rows = rows.view(len(keys), len(drawn[0]), -1)
        for key, row, draws in zip(keys, rows, drawn):
            if not bool(torch.isfinite(row).all()):
                raise CarvError(
                    f"the gradient of {key!r} is not finite (timesteps {[d.t.flatten().tolist() for d in draws]}): "
                    "leave this item out, or load the model in full precision; what is finished is kept."
                )
        self.meter.count(items=len(keys), nfe=sum(draws.t.numel() for item in drawn for draws in item))
        return rows

    def _rows(
        self, latents: Sequence[Tensor], conditions: Sequence[Tensor | None], drawn: Sequence[list[Draws]]
    ) -> Tensor:
        """(items * groups, dim), projected."""
        self._balance(latents[0], conditions[0])
        if self._layers is None:
            return torch.cat([self._autograd(*item) for item in zip(latents, conditions, drawn)])
        with self.meter.phase("gradient"):
            sums = self._by_layers(self._layers, latents, conditions, drawn)
        with self.meter.phase("project"):
            return torch.stack([self.projection([row], self._sizes) for row in sums])

    def _autograd(self, z: Tensor, condition: Tensor | None, drawn: list[Draws]) -> Tensor:
        """(groups, dim) of all parameters of one item, one backward a group."""
        rows = []
        with self.model.trainable() as parameters:
            for draws in drawn:
                with self.meter.phase("gradient"):
                    gradients = torch.autograd.grad(
                        with_gradient(self.loss(z, condition, draws)), parameters, allow_unused=True
                    )
                with self.meter.phase("project"):
                    rows.append(self.projection(gradients, self._sizes))
        return torch.stack(rows)

    def _by_layers(
        self,
        layers: LayerGradients,
        latents: Sequence[Tensor],
        conditions: Sequence[Tensor | None],
        drawn: Sequence[list[Draws]],
    ) -> Tensor:
        """(items * groups, num_features) of the layers' weights, BATCH draws of any items at a time."""
        per_group = drawn[0][0].t.shape[1]
        units = [(i, d.t[0, k], d.eps[0, k], 1.0 if d.weights is None else float(d.weights[0, k]))
                 for i, item in enumerate(drawn) for d in item for k in range(per_group)]  # fmt: skip
        sums = torch.zeros(len(units) // per_group, layers.num_features, device=self.model.device)
        with self.model.frozen():
            for begin in range(0, len(units), BATCH):
                index, t, eps, weights = zip(*units[begin : begin + BATCH])
                z = torch.stack([latents[i] for i in index])
                texts = [conditions[i] for i in index]
                cond = None if texts[0] is None else torch.stack(texts)  # type: ignore[arg-type]
                values = partial(self._losses, z, cond, torch.stack(t), torch.stack(eps), torch.tensor(weights))
                group = torch.arange(begin, begin + len(t), device=sums.device) // per_group
                sums.index_add_(0, group, layers.rows(values) / per_group)
        return sums

    def _balance(self, z: Tensor, condition: Tensor | None) -> None:
        """Scales the layers by gradients of PILOT items of noise, the first time: it depends on the model alone.

        Smooth noise for latents and noise for text: of all that is not data it came nearest to the norms of
        carv-tiny's layers over its training images, within a factor of 1.4.
        """
        if self._layers is None or not self.options.balance or self._layers.balanced:
            return
        draws, keys = GroupedDrawOptions(num_draws=4), [f"pilot {i}" for i in range(PILOT)]
        generator = keyed_generator(0, "balance")
        small = torch.randn(PILOT, z.shape[0], *(-(-n // 4) for n in z.shape[1:]), generator=generator)
        latents = torch.nn.functional.interpolate(small, size=z.shape[1:], mode="bilinear") * 1.3
        text = None if condition is None else torch.randn(PILOT, *condition.shape, generator=generator)
        drawn = [item_draws(key, "balance", draws, self.proposal, tuple(z.shape), 0) for key in keys]
        device = self.model.device
        texts = [None] * PILOT if text is None else list(text.to(device, condition.dtype))  # type: ignore[union-attr]
        self._layers.balance(self._by_layers(self._layers, list(latents.to(device, z.dtype)), texts, drawn))

    def share_layers(self, other: FeatureMaker) -> None:
        """Takes over the layers' scales from a maker of the same model and options, before any gradient is made."""
        if self._layers is not None:
            self._layers = other._layers

    def loss(self, z: Tensor, condition: Tensor | None, draws: Draws) -> Tensor:
        """The scalar that is differentiated: 1/K' sum_k (p/q) w loss_k, of one item's draws (1, K')."""
        n = draws.t.shape[1]
        cond = None if condition is None else condition.expand(n, *condition.shape)
        weights = None if draws.weights is None else draws.weights[0]
        return self._losses(z.expand(n, *z.shape), cond, draws.t[0], draws.eps[0], weights).mean()

    def _losses(self, z: Tensor, cond: Tensor | None, t: Tensor, eps: Tensor, weights: Tensor | None) -> Tensor:
        """(N,) (p/q) w loss of N draws, each with its own latents (N, C, h, w) and condition (N, L, D)."""
        model, o = self.model, self.options
        device = model.device
        z, t = z.to(device), t.to(device)
        eps = eps.to(device, z.dtype)
        z_t = model.schedule.add_noise(z, eps, t)
        predicted = model.predict(z_t, t, None if cond is None else cond.to(device))
        values = sample_losses(o.output, predicted, model.target(z, eps, t))
        factors = model.schedule.w(t, o.weighting).to(values)
        return (factors if weights is None else factors * weights.to(values)) * values

    def metadata(self, items: LatentItems) -> dict[str, Any]:
        """What a store of these features depends on."""
        return {"items": items.fingerprint(), **self.own_metadata()}

    def own_metadata(self) -> dict[str, Any]:
        """What a feature depends on besides its item."""
        return {
            "model": self.model.fingerprint(),
            "parameters": self.projection.num_parameters,
            "role": self.role,
            "proposal": f"{self.proposal.name} {zlib.crc32(self.proposal.q.double().cpu().numpy().tobytes()):08x}",
            "options": dataclasses.replace(self.options, parameters=self.parameters).stored(),
        }

    def open_store(
        self, folder: Any, items: LatentItems, keys: Sequence[str] = (), earlier: Iterable[Any] = ()
    ) -> RowStore:
        """The store of these items' features in `folder`, new or resumed; keys and earlier as of RowStore."""
        shape = (self.options.draws.groups, self.projection.dim)
        return RowStore(folder, self.metadata(items), len(items), shape, keys, earlier)

    def batches(self, pending: list[int]) -> Iterator[list[int]]:
        """The items `pending`, in those whose features are made at once."""
        for begin in range(0, len(pending), self.batch):
            yield pending[begin : begin + self.batch]

    def item_rows(self, items: LatentItems, batch: list[int]) -> Tensor:
        """(N, groups, dim) of the items of a batch, as `features`."""
        keys, latents = [items.key(i) for i in batch], [items.latents(i) for i in batch]
        return self.features(keys, latents, [items.condition(i) for i in batch])

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
            show: called as show(done, total) after each batch, of this shard; where it returns True the work stops
                there, and what is finished is in the store, as it is when an exception or a kill ends it.

        Raises:
            CarvError: as `feature`.
        """
        pending = store.pending(shard, shards)
        total, done = len(store.share(shard, shards)), 0
        try:
            for batch in self.batches(pending.tolist()):
                before, done = done, done + len(batch)
                for index, row in zip(batch, self.item_rows(items, batch).cpu().numpy()):
                    store.write(index, row.astype(np.float32))
                if done // FLUSH_EVERY > before // FLUSH_EVERY:
                    store.flush()
                if show is not None and show(total - len(pending) + done, total) and done < len(pending):
                    return False
        finally:
            store.flush()
        return True


def check_items(keys: Any, latents: Any, conditions: Any) -> None:
    """CarvError unless these are equally many texts, tensors, and conditions: a tensor for each, or None for each."""
    for name, value, kind, what in (
        ("keys", keys, str, "texts"),
        ("latents", latents, Tensor, "torch tensors"),
        ("conditions", conditions, Tensor | None, "torch tensors, or of None for each"),
    ):
        listed = isinstance(value, Sequence) and not isinstance(value, str) and 0 < len(value) == len(keys)
        mixed = listed and kind not in (str, Tensor) and len({item is None for item in value}) > 1
        if not listed or mixed or not all(fits(item, kind) for item in value):
            given = f"{described(value)} of {len(value)}" if isinstance(value, (list, tuple)) else described(value)
            raise CarvError(f"{name} is {given}; it must be a list of {what}, one item at least and as many as keys.")


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
