"""The average of a network's weights, by hand, and what it takes back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from carv_3d.core.ema import Average
from carv_3d.errors import CarvError


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


def test_a_state_is_taken_back_as_a_copy_and_a_part_of_one_is_not() -> None:
    average, kept = Average(nn.Linear(2, 1), 0.3), {"weight": torch.ones(1, 2).double(), "bias": torch.ones(1)}
    average.load_state_dict(kept)
    kept["bias"].zero_()
    assert average.state["weight"].dtype == torch.float32
    assert float(average.state["bias"]) == 1
    for given, sentence in (
        ({"weight": torch.ones(1, 2)}, "the average's bias is in one of the two alone"),
        ({**kept, "more": torch.ones(1)}, "the average's more is in one of the two alone"),
        ({**kept, "weight": torch.ones(2)}, r"the average's weight is \(2,\), and \(1, 2\) is due"),
    ):
        with pytest.raises(ValueError, match=sentence):
            average.load_state_dict(given)


@pytest.mark.parametrize("decay", [-0.1, 1, 2, float("nan"), "a", None])
def test_a_decay_that_averages_nothing_is_refused(decay: Any) -> None:
    with pytest.raises(CarvError, match=r"the average's decay is .*; it must be a number of at least 0 and below 1"):
        Average(nn.Linear(2, 1), decay)
