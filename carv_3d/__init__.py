"""carv_3d: compute-aware variance reduction for expectations with diffusion teachers (arXiv 2605.21489).

In a loop of one's own:

    from carv_3d import CarvEstimator, EstimatorOptions, NoiseSchedule

    estimator = CarvEstimator(NoiseSchedule(alphas_cumprod), EstimatorOptions(num_draws=8))
    latents = encode(render(camera))                      # (R, C, H, W), with autograd
    estimator.estimate(latents, eps_hat).loss.backward()  # any eps_hat(z_t, t), guidance inside
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from carv_3d.version import __version__

if TYPE_CHECKING:
    from carv_3d.core import (
        CarvEstimator,
        CostMeter,
        Draws,
        Estimate,
        EstimatorOptions,
        NoiseSchedule,
        sds_loss,
    )
    from carv_3d.errors import CarvError

__all__ = [
    "CarvError",
    "CarvEstimator",
    "CostMeter",
    "Draws",
    "Estimate",
    "EstimatorOptions",
    "NoiseSchedule",
    "__version__",
    "sds_loss",
]


def __getattr__(name: str) -> Any:
    """The names above, when asked for: importing the package alone does not load torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import carv_3d.core
    import carv_3d.errors

    return getattr(carv_3d.errors if name == "CarvError" else carv_3d.core, name)
