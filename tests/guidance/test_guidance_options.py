"""Options of the guidance: the range of timesteps, and one sentence for what cannot be meant."""

from __future__ import annotations

from typing import Any

import pytest

from carv_3d.errors import CarvError
from carv_3d.guidance.options import GuidanceOptions


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_draws": 0}, "num_draws is 0"),
        ({"num_draws": 2.5}, "num_draws is 2.5"),
        ({"num_draws": "best"}, "num_draws is 'best'; it must be a whole number from 1 to 2^40, or auto"),
        ({"max_batch": "auto"}, "max_batch is 'auto'; it must be a whole number from 1 to 2^40."),
        ({"num_draws": 3, "antithetic": True}, "set num_draws to 4 or antithetic to false"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"proposal": "best"}, "proposal is 'best'; it must be one of uniform, weight, adaptive"),
        ({"stratify": "all"}, "stratify is 'all'"),
        ({"weighting_strategy": "dreamfusion"}, "weighting_strategy is 'dreamfusion'"),
        ({"cfg_convention": "other"}, "cfg_convention is 'other'"),
        ({"vae_sample": "mean"}, "vae_sample is 'mean'"),
        ({"min_step_percent": 0.9, "max_step_percent": 0.5}, "min_step_percent (0.9) is above"),
        ({"max_step_percent": [0.98, 0.01, 100]}, "above max_step_percent (0.01) at 100"),
        ({"max_step_percent": 1.01}, "max_step_percent is 1.01; its values must be numbers from 0 to 1"),
        ({"min_step_percent": [0.1, -0.1, 10]}, "is [0.1, -0.1, 10]; its values must be numbers from 0 to 1"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"grad_clip": 0.0}, "grad_clip is 0.0"),
        ({"trainer_max_steps": 0}, "trainer_max_steps is 0"),
        ({"seed": 1.5}, "seed is 1.5"),
    ],
)
def test_wrong_options_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(CarvError) as caught:
        GuidanceOptions(**wrong)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_vae_sample_has_two_spellings() -> None:
    assert [GuidanceOptions(vae_sample=v).vae_sample for v in (True, "sample", False, "mode")] == [
        "sample",
        "sample",
        "mode",
        "mode",
    ]


def test_timesteps_stay_within_the_models() -> None:
    assert GuidanceOptions().timestep_range(1000, 0) == (20, 980)
    # threestudio would draw t = 1000 here, which is no timestep
    assert GuidanceOptions(min_step_percent=0.0, max_step_percent=1.0).timestep_range(1000, 0) == (0, 999)
    assert GuidanceOptions(min_step_percent=1.0, max_step_percent=1.0).timestep_range(50, 0) == (49, 49)
    annealing = GuidanceOptions(max_step_percent=[0.98, 0.5, 100])
    assert [annealing.timestep_range(1000, s)[1] for s in (0, 50, 100, 10**6)] == [980, 740, 500, 500]


def test_sqrt_anneal_stops_at_the_end() -> None:
    options = GuidanceOptions(sqrt_anneal=True, trainer_max_steps=400)
    ranges = [options.timestep_range(1000, step) for step in (0, 100, 400, 401, 10**9)]
    # half-way in square root at a quarter of the steps; threestudio goes negative past the end
    assert ranges == [(980, 980), (500, 500), (20, 20), (20, 20), (20, 20)]


@pytest.mark.parametrize(("most", "first"), [(0.9, 900), ([0.9, 0.5, 100], 500), ([0, 0.9, 0.5, 100], 900)])
def test_sqrt_anneal_starts_where_threestudio_does(most: Any, first: int) -> None:
    options = GuidanceOptions(sqrt_anneal=True, trainer_max_steps=400, max_step_percent=most)
    assert options.timestep_range(1000, 0) == (first, first)
