"""Steps in which nothing was finite: a warning at the first, the end after many in a row."""

from __future__ import annotations

import logging

from carv_3d.errors import CarvError, shown

LIMIT = 20  # in a row

log = logging.getLogger(__name__)


class NonFiniteSteps:
    """How many steps in a row had nothing finite.

    Attributes:
        count: the steps so far; a host that resumes saves it and puts it back.
    """

    def __init__(self, what: str, fix: str, unit: str = "step") -> None:
        """The error reads "`what` for 20 `unit`s: `fix`"."""
        self.what, self.fix, self.unit = what, fix, unit
        self.count = 0
        self.warned = False

    def update(self, finite: bool) -> None:
        """Count a step.

        Raises:
            CarvError: it was the last of `LIMIT` in a row without anything finite.
        """
        self.count = 0 if finite else min(self.count + 1, LIMIT)
        if self.count >= LIMIT:
            raise CarvError(f"{self.what} for {LIMIT} {self.unit}s: {self.fix}.")
        if not finite and not self.warned:
            self.warned = True
            log.warning("%s for a %s, which moves nothing; if it stays so: %s.", self.what, self.unit, self.fix)


def checked_count(count: object) -> int:
    """The `count` of a saved state; CarvError where it is none."""
    if type(count) is not int or not 0 <= count <= LIMIT:
        raise CarvError(f"the saved count of steps without anything finite is {shown(count)}; it is from 0 to {LIMIT}.")
    return count
