"""How much of a step's gradient is signal, from the gradients of successive steps alone."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

MEMORY = 30  # steps that the averages reach back, about


class SignalToNoise:
    """|E g|^2 / tr Cov(g) of a step's parameter gradient g, for any design, one antithetic pair among them.

    One over it is the gradient noise scale of arXiv 1812.06162. Two steps share no random number, so
    E[g_i . g_{i+1}] = |E g|^2 as far as what is trained stands still in between, and E|g|^2 = |E g|^2 + tr Cov(g). Both
    are averaged over about `MEMORY` steps; the upstream's noise counts as well.
    """

    def __init__(self) -> None:
        self.signal = self.total = 0.0
        self._before: list[Tensor] = []

    def update(self, gradients: Iterable[Tensor]) -> float:
        """Look at one step's gradients; returns the ratio, at least 0, or NaN while it is not known.

        They are kept, not copied, until the next call, and must not be changed in place. A gradient that is not finite
        is left out.
        """
        g = [x.detach().reshape(-1).float() for x in gradients]
        before, self._before = self._before, g
        if [x.shape for x in before] != [x.shape for x in g]:
            before = []
        square, dot = torch.stack([_inner(g, g), _inner(before or g, g)]).tolist()  # one wait for the device
        if not math.isfinite(square):
            self._before = []
        elif before:
            self.signal += (dot - self.signal) / MEMORY
            self.total += (square - self.total) / MEMORY
        return self.value

    @property
    def value(self) -> float:
        """The ratio as measured so far."""
        noise = self.total - max(self.signal, 0.0)
        return max(self.signal, 0.0) / noise if self.total > 0 and noise > 0 else math.nan

    def state_dict(self) -> dict[str, float]:
        """The averages; the last gradient is as large as the model and is not kept."""
        return {"signal": self.signal, "total": self.total}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Takes back `state_dict`."""
        self.signal, self.total = state["signal"], state["total"]
        self._before = []


def _inner(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return torch.stack([torch.dot(x, y) for x, y in zip(a, b)]).sum()
