"""Methods by name."""

from __future__ import annotations

from pathlib import Path

from carv_3d.variance.command import VarianceRequest
from carv_3d.variance.methods import WORDS, method


def test_methods_and_grids_are_read() -> None:
    assert method("is+strat").guidance["proposal"] == "weight"
    assert method("vae").guidance["vae_sample"] == "draw"
    assert method("cameras").data == {"camera_sampling": "low_discrepancy"}
    asked = VarianceRequest(source=Path("x"), R=(1,), K=(1, 2), methods=("uniform", "antithetic"))
    assert [s.key for s in asked.settings()] == ["2,1,uniform", "1,1,uniform", "1,2,uniform", "1,2,antithetic"]
    assert set(WORDS) >= {"uniform", "is", "strat", "antithetic", "control", "vae", "cameras"}
