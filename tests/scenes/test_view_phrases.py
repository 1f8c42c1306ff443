"""The thresholds of the coarse view phrases; the phrases themselves are in test_scene_cameras."""

from __future__ import annotations

import pytest

from carv_3d.scenes.view_phrases import shift_azimuth, view_phrase


@pytest.mark.parametrize(
    ("azimuth", "expected"), [(0, 0), (179, 179), (180, -180), (190, -170), (-190, 170), (540, -180)]
)
def test_azimuths_are_shifted_into_half_a_turn_each_way(azimuth: float, expected: float) -> None:
    assert shift_azimuth(azimuth) == expected


@pytest.mark.parametrize(
    ("thresholds", "azimuth", "phrase"),
    [
        ({"front_threshold": 80.0}, 79.0, "front view"),
        ({"front_threshold": 80.0}, -79.0, "front view"),
        ({"front_threshold": 80.0}, 81.0, "side view"),
        ({"front_threshold": 80.0}, -81.0, "side view"),
        ({"back_threshold": 80.0}, 101.0, "back view"),
        ({"back_threshold": 80.0}, -101.0, "back view"),
        ({"back_threshold": 80.0}, 99.0, "side view"),
        ({"back_threshold": 80.0}, -99.0, "side view"),
        ({"front_threshold": 100.0, "back_threshold": 100.0}, 90.0, "back view"),  # the back comes first
    ],
)
def test_thresholds_bound_front_and_back(thresholds: dict[str, float], azimuth: float, phrase: str) -> None:
    assert view_phrase(0.0, azimuth, fine=False, **thresholds) == phrase


@pytest.mark.parametrize("fine", [True, False])
def test_the_overhead_threshold_bounds_the_view_from_above(fine: bool) -> None:
    assert view_phrase(31.0, 0.0, fine, overhead_threshold=30.0) == "overhead view"
    assert view_phrase(30.0, 0.0, fine, overhead_threshold=30.0) == "front view"
    assert view_phrase(-90.0, 0.0, fine) == "front view"
