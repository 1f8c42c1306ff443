"""The true shapes behind prompts, and the figures of how near an asset comes to one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from carv_3d.evaluation.truth import TrueShape, iou, psnr, scoring_cameras
from carv_3d.generate.config import Config

DATA = Config().data


def test_overlap_and_signal_to_noise_by_hand() -> None:
    a, b = np.array([True, True, False, False]), np.array([True, False, True, False])
    assert iou(a, b) == iou(b, a) == pytest.approx(1 / 3)
    assert iou(a, np.ones(4, bool)) == iou(np.ones(4, bool), a) == 0.5
    assert iou(np.zeros(4, bool), np.zeros(4, bool)) == 0.0
    assert psnr(np.zeros((2, 3)), np.full((2, 3), 0.1)) == pytest.approx(20.0)
    assert psnr(np.ones(3), np.ones(3)) == 100.0


def test_assets_are_seen_from_the_evaluation_view() -> None:
    cameras = scoring_cameras(replace(DATA, eval_fovy_deg=41.0, eval_camera_distance=2.25))
    assert cameras.elevation.tolist() == [5.0] * 8 + [30.0] * 8
    assert cameras.azimuth.tolist() == [45.0 * i for i in range(8)] * 2
    assert set(cameras.fovy.tolist()) == {41.0}
    assert set(cameras.distance.tolist()) == {2.25}


def test_the_true_shape_is_itself() -> None:
    shape = TrueShape.from_prompt("a red mug", DATA)
    assert shape.rgb is not None
    rgb, solid = torch.tensor(shape.rgb), torch.tensor(shape.solid)
    assert shape.score(rgb, solid.float()) == {"iou": 1.0, "psnr": 100.0}
    assert shape.score(rgb, torch.where(solid, 0.6, 0.4))["iou"] == 1.0  # solid is what stops half of the light
    nothing = shape.score(torch.ones(16, 64, 64, 3), torch.zeros(16, 64, 64))
    assert nothing["iou"] == 0.0
    assert nothing["psnr"] < 15
    half = shape.solid.copy()
    half[:8] = False
    assert iou(half, shape.solid) == pytest.approx(shape.solid[8:].sum() / shape.solid.sum())
    assert TrueShape.from_prompt("a mug", DATA).rgb is None  # no color: a silhouette alone


def test_the_true_shape_has_the_color_and_the_material_of_its_prompt() -> None:
    images = [TrueShape.from_prompt(f"a {words} mug", DATA).rgb for words in ("red", "striped red", "blue")]
    red, striped, blue = (np.asarray(rgb) for rgb in images)
    assert red[..., 0].mean() > red[..., 2].mean()
    assert blue[..., 2].mean() > blue[..., 0].mean()
    assert np.abs(red - striped).max() > 0.1
