"""Influence scores of a diffusion model's training items, on the estimator of `core`.

Neither `traker` nor `dattri` is used. Both take one gradient of an item, so its draws leave no groups, and a score
has no standard error. Timesteps and noise reach them through the batch, which ties draws to slots. Both have no ridge
by default. `benchmarks/attribution_digits.py` compares with both (docs/results/attribution.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from carv_3d.lazy import lazily

if TYPE_CHECKING:
    from carv_3d.attribution.features import FeatureMaker
    from carv_3d.attribution.model import GradientModel
    from carv_3d.attribution.options import FeatureOptions, GroupedDrawOptions
    from carv_3d.attribution.scores import Scores, bilinear, choose_ridge, cosine, kernel, relatif, tracin, trak

__all__ = [
    "FeatureMaker",
    "FeatureOptions",
    "GradientModel",
    "GroupedDrawOptions",
    "Scores",
    "bilinear",
    "choose_ridge",
    "cosine",
    "kernel",
    "relatif",
    "tracin",
    "trak",
]

__getattr__ = lazily(
    __name__,
    {
        "features": "FeatureMaker",
        "model": "GradientModel",
        "options": "FeatureOptions GroupedDrawOptions",
        "scores": "Scores bilinear choose_ridge cosine kernel relatif tracin trak",
    },
)
