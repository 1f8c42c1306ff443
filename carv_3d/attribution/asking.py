"""The gradients of a query: a given number of draws, or rounds of them until more could hardly change the ranking."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from carv_3d.attribution.encoded import embed, encode_images
from carv_3d.attribution.features import FeatureMaker
from carv_3d.attribution.model import GradientModel
from carv_3d.attribution.queries import Query
from carv_3d.attribution.request import AttributeOptions
from carv_3d.attribution.scoring import Scorer

MAX_ROUNDS = 8
SHARE = 0.1  # of the scores' error variance may be the query's draws' in the end
LOOKED_AT = 4096  # items, for that share


class Asked:
    """The images of a query, encoded, and the makers of their gradients.

    Attributes:
        rounds: that were made.
        share: the query's share of the scores' error variance after them; NaN where it was not asked for.
    """

    def __init__(
        self, query: Query, teacher: Any, model: GradientModel, options: AttributeOptions, trained: FeatureMaker
    ) -> None:
        """trained: the maker of the training images' gradients, whose projection and timesteps the query shares."""
        self._maker = FeatureMaker(model, options.query_features, "query", trained.proposal, trained.projection)
        self._maker.share_layers(trained)
        self._latents = list(encode_images(query.images, teacher))
        self._conditions = [embed(caption, teacher) for caption in query.captions]
        self.rounds, self.share = 0, float("nan")

    def round(self) -> Tensor:
        """(V, groups, dim) of draws that no round before had."""
        suffix = f" {self.rounds}" if self.rounds else ""
        self.rounds += 1
        keys = [f"{v}{suffix}" for v in range(len(self._latents))]
        return self._maker.features(keys, self._latents, self._conditions).cpu()

    def until_stable(self, scorer: Scorer, show: Callable[[int], object] = lambda rounds: None) -> Tensor:
        """(V, H, dim) of rounds until the query's draws make less than SHARE of the scores' error variance.

        The rest of it is the training images' draws'. The limit is MAX_ROUNDS.

        Args:
            scorer: of the training images.
            show: called with the number of rounds after each.
        """
        items = scorer.items
        picked = np.unique(np.linspace(0, len(items) - 1, min(len(items), LOOKED_AT)).astype(int))
        some = torch.as_tensor(np.asarray(items[picked]))
        parts: list[Tensor] = []
        while self.rounds < MAX_ROUNDS:
            parts.append(self.round())
            show(self.rounds)
            self.share = query_share(scorer, torch.cat(parts, 1).mean(0, keepdim=True), some)
            if self.share < SHARE:
                break
        return torch.cat(parts, 1)


def query_share(scorer: Scorer, query: Tensor, items: Tensor) -> float:
    """The share of the scores' error variance that comes from the query's draws, the mean over items.

    Args:
        scorer: of these items.
        query: (1, H, d).
        items: (N, G, d).
    """
    whole = scorer(query, items).errors.square().mean()
    own = scorer(query, items.mean(1, keepdim=True)).errors.square().mean()
    return float(own / whole) if float(whole) > 0 else 0.0
