"""The objectives by name: the residual, the predictions that it needs, and the weight w(t) that timesteps follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.objectives import residuals as r


def unweighted(schedule: NoiseSchedule) -> Tensor:
    """1 at every timestep, (T,)."""
    return schedule.weights("uniform")


def alpha_over_sigma(schedule: NoiseSchedule) -> Tensor:
    """alpha_t / sigma_t, (T,)."""
    t = torch.arange(schedule.num_train_timesteps, device=schedule.device)
    return schedule.alpha(t) / schedule.sigma(t)


@dataclass(frozen=True)
class Objective:
    """An objective as the estimator needs it.

    Attributes:
        function: the residual f, see `carv_3d.objectives.residuals`.
        needs: the fields of `EpsHat` that it reads. Only what they take is run: one UNet sample a draw for a prediction
            without guidance, two with it, one more for a negative prompt.
        weight: the factor of f that depends on t alone, (T,), which the timestep proposals follow; None for the option
            `weighting_strategy`.
        image: a second residual, in image space.
    """

    function: Callable[..., Tensor]
    needs: tuple[str, ...]
    weight: Callable[[NoiseSchedule], Tensor] | None = None
    image: Callable[..., Tensor] | None = None

    def weights(self, schedule: NoiseSchedule, weighting: str = "sds") -> Tensor:
        """The weights w of all timesteps, (T,); `weighting` is used where the objective has no weight of its own."""
        return schedule.weights(weighting) if self.weight is None else self.weight(schedule)


OBJECTIVES: dict[str, Objective] = {
    "sds": Objective(r.sds, ("guided",)),
    "sjc": Objective(r.sjc, ("guided",), unweighted),
    "sjc_plain": Objective(r.sjc_plain, ("guided",), unweighted),
    "hifa": Objective(r.sds, ("guided",), image=r.hifa),
    "csd": Objective(r.csd, ("text", "uncond")),
    "nfsd": Objective(r.nfsd, ("guided", "negative")),
    "vsd": Objective(r.vsd, ("guided", "trained")),
    "vsd_hifa": Objective(r.vsd, ("guided", "trained"), image=r.hifa),
    "dmd": Objective(r.dmd, ("guided", "trained"), unweighted),
    "kl": Objective(r.vsd, ("guided", "trained"), alpha_over_sigma),
}

if TYPE_CHECKING:  # the choices follow the table
    PlainObjective = str
    TrainedObjective = str
    MatchingObjective = str
else:
    PlainObjective = Literal[tuple(n for n, o in OBJECTIVES.items() if "trained" not in o.needs)]
    TrainedObjective = Literal[tuple(n for n, o in OBJECTIVES.items() if "trained" in o.needs and o.weight is None)]
    MatchingObjective = Literal[tuple(n for n, o in OBJECTIVES.items() if "trained" in o.needs and o.weight)]
