"""The rows that come with the package, read and put through their metric while the model is still being loaded."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from carv_3d.attribution.request import METHODS, AttributeOptions
from carv_3d.attribution.scoring import Scorer, WhiteScorer
from carv_3d.attribution.shipped import ShippedRows, read
from carv_3d.attribution.store import as_stored


class ShippedAhead:
    """A thread that reads the rows and makes their scorer.

    Both are nearly all done outside Python's lock, and loading a model is nearly all imports within it.
    """

    def __init__(self, options: AttributeOptions) -> None:
        self._options = options
        pool = ThreadPoolExecutor(1, "shipped rows")
        self._made = pool.submit(self._make)
        pool.shutdown(wait=False)

    def _make(self) -> tuple[ShippedRows, Scorer] | str:
        """As `get`, of a key of which the options alone are known yet: rows of others are not kept."""
        shipped = read(self._options.items)
        if isinstance(shipped, str):
            return shipped
        known = {**shipped.key, "options": as_stored(self._options.features.stored())}
        return shipped.unfit(known) or (shipped, shipped_scorer(self._options.method, shipped))

    def get(self, key: Mapping[str, Any]) -> tuple[ShippedRows, Scorer] | str:
        """The rows and their scorer, or why there are none, in a sentence.

        Args:
            key: what they must depend on.

        Raises:
            CarvError: the file is damaged.
        """
        made = self._made.result()
        return made if isinstance(made, str) else made[0].unfit(key) or made


def shipped_scorer(method: str, shipped: ShippedRows) -> Scorer:
    """Of the rows that came with the package."""
    if METHODS[method].relative:
        return WhiteScorer(method, shipped.rows, shipped.ridge)
    return Scorer(method, shipped.rows, ridge=shipped.ridge)
