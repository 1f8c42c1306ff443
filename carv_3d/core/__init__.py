"""The estimator, on torch alone: it knows no diffusers, no scene and no host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from carv_3d.lazy import lazily

if TYPE_CHECKING:
    from carv_3d.core.allocation import Measurement, best_measured, best_within
    from carv_3d.core.continuous import ContinuousSchedule
    from carv_3d.core.costs import CostMeter
    from carv_3d.core.designs import Design
    from carv_3d.core.estimator import CarvEstimator, Draws, Estimate, EstimatorOptions
    from carv_3d.core.proposals import make_proposal
    from carv_3d.core.schedule import NoiseSchedule
    from carv_3d.core.sds import sds_loss
    from carv_3d.core.variance import cross_covariance, ecm, flat_gradient, half_square, re, total_variance

__all__ = [
    "CarvEstimator",
    "ContinuousSchedule",
    "CostMeter",
    "Design",
    "Draws",
    "Estimate",
    "EstimatorOptions",
    "Measurement",
    "NoiseSchedule",
    "best_measured",
    "best_within",
    "cross_covariance",
    "ecm",
    "flat_gradient",
    "half_square",
    "make_proposal",
    "re",
    "sds_loss",
    "total_variance",
]

__getattr__ = lazily(
    __name__,
    {
        "allocation": "Measurement best_measured best_within",
        "continuous": "ContinuousSchedule",
        "costs": "CostMeter",
        "designs": "Design",
        "estimator": "CarvEstimator Draws Estimate EstimatorOptions",
        "proposals": "make_proposal",
        "schedule": "NoiseSchedule",
        "sds": "sds_loss",
        "variance": "cross_covariance ecm flat_gradient half_square re total_variance",
    },
)
