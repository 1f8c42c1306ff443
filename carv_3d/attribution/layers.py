"""Per-sample gradients of linear and convolution layers, each projected from both sides as it is made.

A layer's weight gradient of one sample is a sum of outer products over its positions, `G = sum_p b_p a_p^T`, a_p what
went in (a convolution's patch) and b_p the gradient of what came out. With random signs P (n_in, k) and Q (n_out, k),
scaled by 1/sqrt(k), its feature is

    phi(G) = Q^T G P = sum_p (Q^T b_p) (P^T a_p)^T        (k, k)

(LoGra, arXiv 2405.13954). E P P^T = I and E Q Q^T = I, so inner products are kept in expectation over the signs:
`E <phi(G), phi(G')> = <G, G'>`. Forward hooks keep P^T a_p, backward hooks add up the products: nothing of a weight's
size is made, and the backward goes through no weight and no further down than the first of the layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carv_3d.attribution.losses import with_gradient
from carv_3d.attribution.parameter_names import PARAMETERS
from carv_3d.core.seeds import keyed_generator
from carv_3d.errors import CarvError

ADDED = "add_embedding."  # in the names of layers that add the text as a whole to the time's embedding
SIDE = 16  # k, on either side of a weight


def hooked_layers(module: nn.Module, parameters: str) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers of `module` that a word of PARAMETERS names and that hooks can follow, by name; each weight once.

    Not among them: convolutions in groups or with padding other than zeros, weights that are computed from other
    parameters, and the layers within torch's own MultiheadAttention, which reads their weights without calling them.
    """
    chosen = PARAMETERS[parameters]
    if chosen is None:
        return {}
    closed = {id(m) for owner in module.modules() if isinstance(owner, nn.MultiheadAttention) for m in owner.modules()}
    layers: dict[str, nn.Linear | nn.Conv2d] = {}
    weights: set[int] = set()
    for name, layer in module.named_modules():
        plain = isinstance(layer, nn.Linear) or (
            isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
        )
        if not plain or id(layer) in closed or "weight" not in layer._parameters or not chosen(name):
            continue
        if id(layer.weight) not in weights:
            weights.add(id(layer.weight))
            layers[name] = layer  # type: ignore[assignment]
    return layers


class LayerGradients:
    """The projected gradients of a module's linear and convolution weights, sample by sample.

    Attributes:
        num_features: numbers of a sample's row.
        balanced: whether `balance` was called.
    """

    def __init__(self, layers: dict[str, nn.Linear | nn.Conv2d], seed: int = 0, side: int = SIDE) -> None:
        """layers: as of `hooked_layers`, frozen. side: k; a side of no more numbers is left as it is."""
        self._layers = layers
        self._sides = {name: _sides(layer.weight, side, seed, name) for name, layer in layers.items()}
        self._sizes = {name: p.shape[0] * q.shape[0] for name, (p, q) in self._sides.items()}
        self.num_features = sum(self._sizes.values())
        self.balanced = False
        self._scales = dict.fromkeys(layers, 1.0)
        self._rows: dict[str, list[Tensor]] = {}
        self._leaves: list[Tensor] = []

    def balance(self, rows: Tensor) -> None:
        """Scales every layer: over these rows (N, num_features) all of a kind then have the same mean square norm.

        Both kinds together have the same: layers of `add_embedding`, by which text as a whole enters the network, and
        all others. The weights' sizes, their inputs' and how near they lie to the output make norms of layers differ
        by factors of thousands, and a few convolutions would decide every inner product.
        """
        norms = [float(part.square().sum(1).mean().sqrt()) for part in rows.split(list(self._sizes.values()), 1)]
        added = {name: ADDED in name for name in self._layers}
        for name, norm in zip(self._layers, norms):
            alike = sum(kind == added[name] for kind in added.values())
            self._scales[name] *= 1 / (norm * alike**0.5) if norm > 0 else 1.0
        self.balanced = True

    def rows(self, loss: Callable[[], Tensor]) -> Tensor:
        """(N, num_features) float32: the gradient of each sample's loss.

        Args:
            loss: runs the module once on N samples that do not affect each other, and returns their losses (N,).

        Raises:
            CarvError: a layer whose rows are not the samples'.
        """
        with self._hooked(), torch.enable_grad():
            values = loss()
            if self._leaves:
                torch.autograd.grad(with_gradient(values.sum()), self._leaves, allow_unused=True)
            n, device = len(values), values.device
            return torch.cat([self._row(name, n, device) for name in self._layers], 1)

    def _row(self, name: str, n: int, device: torch.device) -> Tensor:
        parts = self._rows[name]
        if any(len(part) != n for part in parts):
            raise CarvError(
                f"layer {name!r} of the model does not take one row a sample, so that gradients cannot be kept "
                "apart: take those of all parameters (parameters=all)."
            )
        return (
            self._scales[name] * torch.stack(parts).sum(0)
            if parts
            else torch.zeros(n, self._sizes[name], device=device)
        )

    @contextlib.contextmanager
    def _hooked(self) -> Iterator[None]:
        self._rows = {name: [] for name in self._layers}
        handles = [
            layer.register_forward_hook(lambda layer, given, out, name=name: self._after(name, layer, given[0], out))
            for name, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._rows, self._leaves = {}, []

    def _after(self, name: str, layer: Any, x: Tensor, out: Tensor) -> Tensor:
        """Keeps what went into a layer, and has the gradient of what came out multiplied with it."""
        if not out.requires_grad:  # nothing below it is differentiated: the backward ends here
            leaf = out.detach().requires_grad_()
            self._leaves.append(leaf)
            out = leaf.clone()  # which the network may write into
        p, q = (side.to(x.device) for side in self._sides[name])
        conv = isinstance(layer, nn.Conv2d)
        x = x.detach().float()
        with torch.no_grad():
            if conv:
                a = F.conv2d(x, p, None, layer.stride, layer.padding, layer.dilation).flatten(2)
            else:
                a = (x @ p.T).reshape(len(x), -1, len(p)).transpose(1, 2)

        def add(gradient: Tensor) -> None:
            b = gradient.float()
            if conv:
                b = torch.matmul(q, b.flatten(2))
            else:
                b = (b @ q.T).reshape(len(b), -1, len(q)).transpose(1, 2)
            self._rows[name].append(torch.matmul(b, a.transpose(1, 2)).flatten(1))

        out.register_hook(add)
        return out


def _sides(weight: Tensor, side: int, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """(k, *input) and (k', n_out): P^T in the weight's own shape, and Q^T."""
    generator = keyed_generator(seed, "sides", name)
    n_out, n_in = len(weight), weight[0].numel()
    p, q = _signs(side, n_in, generator), _signs(side, n_out, generator)
    return p.view(len(p), *weight.shape[1:]).to(weight.device), q.to(weight.device)


def _signs(side: int, n: int, generator: torch.Generator) -> Tensor:
    """(min(side, n), n)."""
    if n <= side:
        return torch.eye(n)
    return (torch.randint(0, 2, (side, n), generator=generator) * 2 - 1) / side**0.5
