"""The average of a network's weights, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from carv_3d.core.ema import Average


def test_the_decay_warms_up_and_whole_numbers_are_copied() -> None:
    module = nn.BatchNorm1d(1)
    average = Average(module, 0.3)
    expected = 1.0
    for step, decay in enumerate((1 / 10, 2 / 11, 3 / 12, 0.3, 0.3)):  # (1 + step) / (10 + step), and 0.3 at most
        module.weight.data.fill_(step + 2.0)
        module.num_batches_tracked += 1  # type: ignore[operator]
        average.update(module, step)
        expected = decay * expected + (1 - decay) * (step + 2.0)
        assert float(average.state["weight"]) == pytest.approx(expected)
        assert int(average.state["num_batches_tracked"]) == step + 1
    module.weight.data.zero_()
    assert float(average.state["weight"]) == pytest.approx(expected)  # it is a copy
    assert torch.equal(average.state["bias"], torch.zeros(1))
