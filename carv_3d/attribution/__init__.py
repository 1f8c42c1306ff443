"""Influence scores of a diffusion model's training items, on the estimator of `core`.

Why neither `traker` nor `dattri` is underneath: both take one gradient of an item, so that its draws leave no groups
and a score no standard error; timesteps and noise reach them through the batch, which ties draws to slots; both have
no ridge unless told, and traker is in float16, which came to nothing on the digits of docs/results/attribution.md. What is left
of them beside that, a projection and a solve, is short. `benchmarks/attribution_digits.py` runs both beside this.
"""

from __future__ import annotations

from carv_3d.attribution.features import FeatureMaker
from carv_3d.attribution.model import GradientModel
from carv_3d.attribution.options import DrawOptions, FeatureOptions
from carv_3d.attribution.scores import (
    Scores,
    bilinear,
    choose_ridge,
    cosine,
    cross_fitted,
    kernel,
    relatif,
    tracin,
    trak,
)

__all__ = [
    "DrawOptions",
    "FeatureMaker",
    "FeatureOptions",
    "GradientModel",
    "Scores",
    "bilinear",
    "choose_ridge",
    "cosine",
    "cross_fitted",
    "kernel",
    "relatif",
    "tracin",
    "trak",
]
