"""Methods by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from carv_3d.errors import CarvError
from carv_3d.variance.command import VarianceRequest
from carv_3d.variance.methods import WORDS, method


def test_methods_and_grids_are_read() -> None:
    assert method("is+strat").guidance["proposal"] == "weight"
    assert method("vae").guidance["vae_sample"] == "draw"
    assert method("cameras").data == {"camera_sampling": "low_discrepancy"}
    asked = VarianceRequest(source=Path("x"), R=(1,), K=(1, 2), methods=("uniform", "antithetic"))
    assert [s.key for s in asked.settings()] == ["2,1,uniform", "1,1,uniform", "1,2,uniform", "1,2,antithetic"]
    with pytest.raises(CarvError, match=r"--methods names one estimator twice, is\+strat and strat\+is; name it once"):
        replace(asked, methods=("is+strat", "is", "strat+is")).settings()
    assert set(WORDS) >= {"uniform", "is", "strat", "antithetic", "control", "vae", "cameras", "antipodal"}


def test_cameras_on_opposite_sides_take_an_even_number_of_renders() -> None:
    asked = VarianceRequest(source=Path("x"), R=(1, 2, 3, 4), K=(2,), methods=("is+strat+antipodal",))
    assert [(s.R, s.method.cameras) for s in asked.settings()[1:]] == [(2, "antipodal"), (4, "antipodal")]
    samples = {s.upstream for s in replace(asked, methods=("uniform", "cameras", "antipodal")).settings()}
    assert len(samples) == 9  # no two designs share renders: R = 1 to 4 random, 2 to 4 in sequence, 2 and 4 in pairs
    with pytest.raises(CarvError, match="give --renders of 2 or 4"):
        replace(asked, R=(1, 3)).settings()
