"""Influence scores of a diffusion model's training items, on the estimator of `core`."""

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
