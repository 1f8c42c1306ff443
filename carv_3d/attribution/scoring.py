"""One method on one set of training items: what is the same for every query is made once."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from carv_3d.attribution.request import METHODS
from carv_3d.attribution.scores import Scores, choose_ridge, cosine, factorized, kernel, relatif, trak

WHITEN_CHUNK = 1024  # items at a time


class Scorer:
    """Scores of items for a query by a method of `request.METHODS`.

    Attributes:
        ridge: of the methods that have one; the method's or by likelihood, unless given.
        items: (N, G, d), as `__call__` takes them.
    """

    def __init__(self, method: str, items: Any, gram: Tensor | None = None, ridge: float | None = None) -> None:
        """items: (N, G, d), a tensor or a (memory-mapped) array. gram: `kernel(items)`, if it is known."""
        self.method, self.items = method, items
        self.ridge: float | None = None
        how = METHODS[method]
        if not how.kernel:
            self._score: Any = cosine
            return
        ridge = how.ridge if ridge is None else ridge
        if ridge is None:
            ridge = choose_ridge(items) if len(items) >= 4 else 1.0
        self.ridge = ridge
        gram = kernel(items) if gram is None else gram
        self._score = partial(relatif if how.relative else trak, ridge=ridge, gram=gram)

    def __call__(self, queries: Tensor, items: Any = None) -> Scores:
        """Scores (1, N) of a query (1, H, d) for the items, or for others with as many groups or fewer."""
        scores: Scores = self._score(queries, self.items if items is None else items)
        return scores


class WhiteScorer(Scorer):
    """A relative method on rows in memory that are put through the metric's root once, in float32."""

    def __init__(self, method: str, items: Tensor, ridge: float) -> None:
        """items: (N, G, d) float32."""
        self.method, self.ridge, self._score = method, ridge, cosine
        whole = items.mean(1)
        self._root = torch.linalg.inv(factorized((whole.T @ whole / len(whole)).double(), ridge)).T.float()
        self.items = torch.cat([chunk @ self._root for chunk in items.split(WHITEN_CHUNK)])

    def __call__(self, queries: Tensor, items: Any = None) -> Scores:
        """As of `Scorer`; items are rows of `items`, put through already."""
        return super().__call__(queries.float() @ self._root, items)
