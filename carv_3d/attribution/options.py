"""What the features of an attribution are made with. The whole of it stands in a store's metadata."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from carv_3d.attribution.losses import LOSSES
from carv_3d.core.designs import STRATIFY, Design
from carv_3d.core.proposals import check_range
from carv_3d.core.schedule import WEIGHTINGS
from carv_3d.errors import CarvError


@dataclass(frozen=True)
class DrawOptions:
    """The draws (t, eps) of one item. Raises CarvError, naming the option, for a value that cannot be meant.

    An item's K draws come in `groups` of K / groups, each laid out by the design on its own: a group's mean is an
    unbiased estimate by itself, and the groups are independent. They carry the standard errors and the cross-fitting.
    """

    num_draws: int = 8
    """K, draws of (t, eps) per item."""
    groups: int = 2
    """Independent groups among them, each stored."""
    stratify: str = "render"
    """none | render, see Design: strata over the timesteps of a group's draws."""
    antithetic: bool = True
    """Draws in pairs with the same t and opposite noise."""
    min_step: int = 0
    max_step: int = 999

    def __post_init__(self) -> None:
        if self.stratify not in STRATIFY[:2]:
            raise CarvError(f"stratify is {self.stratify!r}; for attribution it must be none or render.")
        for name in ("num_draws", "groups"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise CarvError(f"{name} is {value!r}; it must be a whole number of at least 1.")
        if self.num_draws % self.groups:
            raise CarvError(
                f"num_draws is {self.num_draws} and groups {self.groups}; the draws must divide into equal groups."
            )
        if self.antithetic and self.num_draws // self.groups % 2:
            raise CarvError(
                f"num_draws is {self.num_draws} in {self.groups} groups, and antithetic draws come in pairs: "
                f"take a multiple of {2 * self.groups}, or set antithetic to false."
            )
        check_range(self.min_step, self.max_step)

    @property
    def design(self) -> Design:
        """How the draws of an image are laid out."""
        return Design(self.stratify, self.antithetic)

    @property
    def per_group(self) -> int:
        """Draws in each group."""
        return self.num_draws // self.groups


@dataclass(frozen=True)
class FeatureOptions:
    """One item's feature: `P E_{t, eps}[w(t) dloss/dtheta]`, P a random projection to `dim` numbers."""

    draws: DrawOptions = field(default_factory=DrawOptions)
    loss: str = "loss"
    """See `losses.LOSSES`."""
    weighting: str = "uniform"
    """w(t) of the loss, see NoiseSchedule.w."""
    dim: int | None = 2048
    """Of the projection; None keeps the whole gradient."""
    seed: int = 0
    """Of draws and projection."""

    def __post_init__(self) -> None:
        for name, allowed in (("loss", LOSSES), ("weighting", WEIGHTINGS)):
            if getattr(self, name) not in allowed:
                raise CarvError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}.")
        whole: dict[str, tuple[Any, int]] = {"dim": (self.dim, 1), "seed": (self.seed, 0)}
        for name, (value, least) in whole.items():
            if value is None and name == "dim":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise CarvError(f"{name} is {value!r}; it must be a whole number of at least {least}.")
