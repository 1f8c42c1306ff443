"""What `carv distill variance` is asked for, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from carv_3d.config.request import MeasureRequest
from carv_3d.core.options import option
from carv_3d.io.files import expanded

DEFAULT = ("8x1", "8x4", "8x16", "8x16+strat", "8x16+strat+antithetic")


@dataclass(frozen=True, kw_only=True)
class VarianceRequest(MeasureRequest, helps={"out": "The folder; unless given, outputs/distill-variance-MODEL."}):
    """What `carv distill variance` was asked for."""

    model_or_run: str
    settings: tuple[str, ...] = option(DEFAULT, "Samples x draws, with the words of the design.")
    pairs: int = option(40, "Pairs of gradients of each setting.", least=2, most=10**6)

    @property
    def is_run(self) -> bool:
        """Whether the source is the folder of a run, rather than a model."""
        return (expanded(self.model_or_run) / "config.yaml").exists()
