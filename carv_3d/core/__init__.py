"""The estimator, on torch alone: it knows no diffusers, no scene and no host."""

from __future__ import annotations

from carv_3d.core.accounting import (
    CostMeter,
    VarianceSplit,
    Welford,
    ecm,
    ecm_interval,
    re,
    re_interval,
    variance_split,
)
from carv_3d.core.allocation import Measurement, best_measured, best_num_draws, best_within
from carv_3d.core.designs import Design
from carv_3d.core.estimator import CarvEstimator, Draws, Estimate, EstimatorOptions
from carv_3d.core.proposals import make_proposal
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.core.sds import sds_loss

__all__ = [
    "CarvEstimator",
    "CostMeter",
    "Design",
    "Draws",
    "Estimate",
    "EstimatorOptions",
    "Measurement",
    "NoiseSchedule",
    "VarianceSplit",
    "Welford",
    "best_measured",
    "best_num_draws",
    "best_within",
    "ecm",
    "ecm_interval",
    "make_proposal",
    "re",
    "re_interval",
    "sds_loss",
    "variance_split",
]
