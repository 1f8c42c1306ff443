"""The options of score distillation from several views at once, under threestudio-mvdream's names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from carv_3d.core.options import option
from carv_3d.errors import CarvError
from carv_3d.guidance.options import GuidanceOptions
from carv_3d.objectives.residuals import reconstruction
from carv_3d.objectives.table import Objective, unweighted


@dataclass(frozen=True, kw_only=True)
class MVDreamOptions(GuidanceOptions, defaults={"guidance_scale": 50.0}):
    """`GuidanceOptions`, and MVDream's own loss (arXiv 2308.16512).

    Raises:
        CarvError: naming the option, for a value that cannot be meant.
    """

    recon_loss: bool = option(
        True, "Distil z - z_guided, in place of w (guided - eps): MVDream's loss of reconstruction, without w(t)."
    )
    recon_std_rescale: float = option(
        0.5, "How much of z_guided is rescaled to the deviation that it has without guidance.", least=0, most=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recon_loss and self.objective != "sds":
            raise CarvError(f"recon_loss is an objective of its own: set it to false for {self.objective}.")

    @property
    def distilled(self) -> Objective:
        """The objective that the options name."""
        if not (self.recon_loss and self.objective == "sds"):
            return super().distilled
        return Objective(partial(reconstruction, rescale=self.recon_std_rescale), ("text", "guided"), unweighted)
