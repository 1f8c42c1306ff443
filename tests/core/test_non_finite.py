"""A teacher that gives nothing finite: said at the first step, the end after many in a row, in the library too."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from estimators import SCHEDULE, make, model, seeded, some_latents
from torch import Tensor

from carv_3d.core.non_finite import LIMIT, NonFiniteSteps
from carv_3d.core.sds import sds_loss
from carv_3d.errors import CarvError


def nothing(z_t: Tensor, t: Tensor) -> Tensor:
    return torch.full_like(z_t, float("nan"))


def test_steps_in_a_row_are_counted_and_the_first_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    steps = NonFiniteSteps("the sky was dark", "wait for the morning", "night")
    for finite in [False] * (LIMIT - 1) + [True] + [False] * (LIMIT - 1):
        steps.update(finite)
    assert steps.count == LIMIT - 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "the sky was dark for a night" in record.getMessage()
    with pytest.raises(CarvError, match="the sky was dark for 20 nights: wait for the morning"):
        steps.update(False)


def test_an_estimator_without_a_finite_draw_warns_and_then_ends(caplog: pytest.LogCaptureFixture) -> None:
    estimator = make(num_draws=2)
    for _ in range(LIMIT - 1):
        out = estimator.estimate(some_latents(), nothing, generator=seeded())
        assert not out.grad.any()
        assert not out.loss
    assert len(caplog.records) == 1
    resumed = make(num_draws=2)
    resumed.load_state_dict(estimator.state_dict())
    for each in (estimator, resumed):
        with pytest.raises(CarvError, match="no finite draw for 20 steps"):
            each.estimate(some_latents(), nothing, generator=seeded())


def test_one_finite_draw_is_enough() -> None:
    estimator = make(num_draws=4, stratify="none")
    calls: list[Any] = []

    def mostly(z_t: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        out = nothing(z_t, t)
        out[0] = model(z_t, t)[0]
        return out

    for _ in range(LIMIT + 5):
        assert estimator.estimate(some_latents(1), mostly, generator=seeded()).scalars["nonfinite"] == 3
    assert "non_finite" not in estimator.state_dict()
    assert len(calls) == LIMIT + 5


def test_sds_loss_counts_from_call_to_call() -> None:
    for step in range(LIMIT - 1):
        sds_loss(some_latents(), nothing, SCHEDULE, grad_clip=1.0 + step, num_draws=3)
    with pytest.raises(CarvError, match="no finite draw for 20 steps"):
        sds_loss(some_latents(), nothing, SCHEDULE, min_step=30)


def test_the_state_of_an_estimator_that_has_ended_is_taken_back() -> None:
    ended, resumed = make(num_draws=2), make(num_draws=2)
    for _ in range(LIMIT - 1):
        ended.estimate(some_latents(), nothing, generator=seeded())
    for _ in range(3):  # whoever catches the error and continues is ended again
        with pytest.raises(CarvError, match="no finite draw for 20 steps"):
            ended.estimate(some_latents(), nothing, generator=seeded())
    resumed.load_state_dict(ended.state_dict())
    with pytest.raises(CarvError, match="no finite draw for 20 steps"):
        resumed.estimate(some_latents(), nothing, generator=seeded())
    resumed.estimate(some_latents(), model, generator=seeded())
    assert "non_finite" not in resumed.state_dict()
    with pytest.raises(CarvError, match="is 21; it is from 0 to 20"):
        resumed.load_state_dict({**ended.state_dict(), "non_finite": LIMIT + 1})
