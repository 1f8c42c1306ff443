"""What a UNet's output stands for: the noise, or `v = alpha_t eps - sigma_t z` (arXiv 2202.00512)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError

PREDICTION_TYPES = ("epsilon", "v_prediction")


class Prediction:
    """A model with a schedule and `predict(z_t, t, *condition)`, which gives eps or v, and what follows from that.

    z, z_t and eps are (N, C, h, w), t is (N,) integers, conditions are (N, ...); all of it is differentiable.
    """

    schedule: NoiseSchedule
    prediction_type: str
    predict: Any

    def eps_hat(self, z_t: Tensor, t: Tensor, /, *condition: Tensor) -> Tensor:
        """The noise prediction, (N, C, h, w) in z_t's dtype; of v it is `alpha_t v + sigma_t z_t`."""
        prediction: Tensor = self.predict(z_t, t, *condition)
        return prediction if self.prediction_type == "epsilon" else self.schedule.eps_from_v(z_t, prediction, t)

    def z_hat(self, z_t: Tensor, t: Tensor, /, *condition: Tensor) -> Tensor:
        """The clean latents that the prediction stands for, (N, C, h, w)."""
        from_prediction = self.schedule.z_from_eps if self.prediction_type == "epsilon" else self.schedule.z_from_v
        return from_prediction(z_t, self.predict(z_t, t, *condition), t)

    def target(self, z: Tensor, eps: Tensor, t: Tensor, /) -> Tensor:
        """What `predict` is trained towards, eps or v, (N, C, h, w)."""
        return eps if self.prediction_type == "epsilon" else self.schedule.v(z, eps, t)


def check_prediction_type(name: str) -> str:
    """The name itself; CarvError for one that is not known."""
    if name not in PREDICTION_TYPES:
        raise CarvError(f"prediction_type is {name!r}, not {' or '.join(PREDICTION_TYPES)}.")
    return name
