"""Fixtures of the attribution tests."""

from __future__ import annotations

import pytest
import torch
from scaling_double import Scaling, TensorItems

from carv_3d.attribution import GradientModel
from carv_3d.core.schedule import NoiseSchedule

STEPS = 50


@pytest.fixture
def schedule() -> NoiseSchedule:
    return NoiseSchedule.scaled_linear(STEPS, 0.01, 0.2)


@pytest.fixture
def model(schedule: NoiseSchedule) -> GradientModel:
    return GradientModel.from_module(Scaling((1, 4, 4)), schedule, "scaling")


@pytest.fixture
def items() -> TensorItems:
    return TensorItems(torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(autouse=True)
def one_item_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that rows have the same bits however the items are shared out; test_layers.py tries other batches."""
    monkeypatch.setattr("carv_3d.attribution.features.BATCH", 4)
