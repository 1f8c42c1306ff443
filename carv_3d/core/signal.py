"""How much of a step's gradient is signal, from the gradients of successive steps alone."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

MEMORY = 30  # steps that the averages reach back, about


class SignalToNoise:
    """|E g|^2 / tr Cov(g) of a step's parameter gradient g, for any design, one antithetic pair among them.

    Two steps share no random number, so E[g_i . g_{i+1}] = |E g|^2 as far as what is trained stands still in between,
    and E|g|^2 = |E g|^2 + tr Cov(g). Both are averaged over about `MEMORY` steps; the upstream's noise counts as well.
    """

    def __init__(self) -> None:
        self.signal = self.total = 0.0
        self._before: Tensor | None = None

    def update(self, gradients: Iterable[Tensor]) -> float:
        """Look at one step's gradients; returns the ratio, at least 0, or NaN while it is not known.

        A gradient that is not finite is left out.
        """
        g = torch.cat([x.detach().reshape(-1) for x in gradients]).float()
        square = float(g.square().sum())
        before, self._before = self._before, g
        if not math.isfinite(square):
            self._before = None
            return self.value
        if before is not None and before.shape == g.shape:
            dot = float((before * g).sum())
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
        self._before = None
