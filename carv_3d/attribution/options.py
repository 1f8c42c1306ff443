"""What the features of an attribution are made with. The whole of it stands in a store's metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from carv_3d.attribution.losses import LOSSES
from carv_3d.attribution.parameter_names import LayerOptions
from carv_3d.config.reader import to_mapping
from carv_3d.core.designs import Design
from carv_3d.core.options import (
    DrawOptions,
    ProjectionOptions,
    StepOptions,
    WeightingOptions,
    check_draws,
    option,
)


@dataclass(frozen=True, kw_only=True)
class GroupedDrawOptions(
    DrawOptions,
    StepOptions,
    defaults={"num_draws": 8, "antithetic": True, "min_step": 0, "max_step": 999},
    kinds={"num_draws": int, "stratify": Literal["none", "render"]},
):
    """The draws (t, eps) of one item.

    An item's K draws come in `groups` of K / groups, each laid out by the design on its own: a group's mean is an
    unbiased estimate by itself, and the groups are independent. They carry the standard errors.
    """

    groups: int = option(2, "Independent groups among the draws, each stored.", least=1, most=2**20)

    def _check_layout(self) -> None:
        check_draws(self.K, self.antithetic, self.groups)

    @property
    def design(self) -> Design:
        """How the draws of an image are laid out."""
        return Design(stratify=self.stratify, antithetic=self.antithetic)

    @property
    def per_group(self) -> int:
        """Draws in each group."""
        return self.K // self.groups


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(
    ProjectionOptions, WeightingOptions, LayerOptions, defaults={"weighting": "uniform"}, renamed={"loss": "output"}
):
    """One item's feature: `P E_{t, eps}[w(t) dloss/dtheta]`, P a random projection to `dim` numbers."""

    draws: GroupedDrawOptions = option(GroupedDrawOptions, "The draws of the expectation.")
    output: str = option("loss", "What is differentiated, see `losses.LOSSES`.", choices=LOSSES)

    def stored(self) -> dict[str, Any]:
        """As in a store's metadata: `output` is still called loss, and all parameters go without saying."""
        values = to_mapping(self)
        if self.parameters == "all":
            del values["parameters"], values["balance"]
        return {"loss": values.pop("output"), **values}
