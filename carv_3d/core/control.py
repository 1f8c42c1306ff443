"""A control variate on eps: what a draw's contribution takes from its own noise, subtracted.

    f' = f - w(t) beta(t) eps,      beta = <f / w, eps> / |eps|^2 regressed on earlier steps, by bins of timesteps

It keeps the objective: E[eps | t] = 0 whatever t, and beta comes from earlier draws than those it is used on. (One
fitted to the draws at hand would take some of their gradient away with the noise.) Beyond arXiv 2605.21489. On top of
antithetic pairs it changes nothing: there eps cancels by itself. A draw teaches no more than |beta| = `MOST`, so that
steps which went wild cannot make the ones that follow wilder than that.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from carv_3d.core.reduction import per_draw
from carv_3d.errors import CarvError

MOST = 10.0  # as the adaptive proposal's p/q


class EpsControl:
    """beta over `bins` equal parts of the timesteps; nothing is subtracted until something is learnt.

    Old steps fade with `decay`; a bin with few draws is pulled towards 0, by `prior` draws.
    """

    def __init__(self, weights: Tensor, bins: int = 50, decay: float = 0.99, prior: float = 2.0) -> None:
        """weights: (T,) w(t), as in f."""
        self.weights, self.decay, self.prior = weights, decay, prior
        self._products, self._squares = weights.new_zeros(bins), weights.new_zeros(bins)

    def noise(self, t: Tensor, eps: Tensor) -> Tensor:
        """What to subtract, w beta eps of each draw, of expectation 0: t (R, K), eps (R, K, ...) -> (R, K, ...)."""
        self._move(eps.device)
        beta = self._products / (self._squares + self.prior * eps[0, 0].numel())
        return per_draw((self.weights[t] * beta[self._bins(t)]).to(eps), eps) * eps

    def subtract(self, f: Tensor, t: Tensor, eps: Tensor, finite: Tensor | None) -> Tensor:
        """What is left of f without its own noise; what f shows of that is for later steps.

        Args:
            f: (R, K, ...).
            t: (R, K).
            eps: (R, K, ...).
            finite: (R, K), of which draws something is learnt; None for none.
        """
        t, eps = t.to(f.device), eps.to(f)
        without = f - self.noise(t, eps)
        if finite is not None:
            self.update(t, f, eps, finite)
        return without

    def update(self, t: Tensor, f: Tensor, eps: Tensor, finite: Tensor) -> None:
        """Learn from a step's draws, those that are not finite left out.

        Args:
            t: (R, K).
            f: (R, K, ...), before anything was subtracted.
            eps: (R, K, ...).
            finite: (R, K).
        """
        self._move(eps.device)
        known = (finite & (self.weights[t] > 0)).to(self.weights)
        scale = torch.where(known > 0, self.weights[t], torch.ones_like(known))
        products = (f * eps).flatten(2).sum(2).to(self.weights) / scale * known
        squares = eps.square().flatten(2).sum(2).to(self.weights) * known
        products = products.nan_to_num(0.0).clamp(-MOST * squares, MOST * squares)
        in_bin = F.one_hot(self._bins(t).flatten(), len(self._products)).to(self.weights)
        self._products = self.decay * self._products + products.flatten() @ in_bin
        self._squares = self.decay * self._squares + squares.flatten() @ in_bin

    def state_dict(self) -> dict[str, Any]:
        """Tensors."""
        return {"products": self._products.cpu(), "squares": self._squares.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises CarvError for another number of bins."""
        if state["products"].shape != self._products.shape:
            raise CarvError(
                f"the saved control variate has {len(state['products'])} bins and this one {len(self._products)}: "
                "start from a state without it."
            )
        products, squares = state["products"].to(self.weights), state["squares"].to(self.weights)
        if not bool(products.isfinite().all() & squares.isfinite().all() & (squares >= 0).all()):
            raise CarvError("the saved control variate has numbers that are not finite: start from a state without it.")
        self._products, self._squares = products, squares

    def _bins(self, t: Tensor) -> Tensor:
        return torch.div(t * len(self._products), len(self.weights), rounding_mode="floor")

    def _move(self, device: torch.device) -> None:
        if self.weights.device != device:
            self.weights = self.weights.to(device)
            self._products, self._squares = self._products.to(device), self._squares.to(device)
