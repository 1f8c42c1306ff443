"""The signal-to-noise ratio of a step's gradient, from successive steps."""

from __future__ import annotations

import math

import pytest
import torch

from carv_3d.core.signal import MEMORY, SignalToNoise


def test_it_converges_to_the_ratio_of_known_gradients() -> None:
    generator, signal = torch.Generator().manual_seed(0), SignalToNoise()
    mean = torch.full((4000,), 0.5)  # |E g|^2 = 1000, tr Cov g = 4000
    values = [
        signal.update([x[:1000], x[1000:].view(3, 1000)])
        for x in (mean + torch.randn(4000, generator=generator) for _ in range(20 * MEMORY))
    ]
    assert torch.tensor(values[10 * MEMORY :]).mean().item() == pytest.approx(0.25, rel=0.03)


def test_noise_alone_has_none_and_a_fixed_gradient_no_noise() -> None:
    generator, signal = torch.Generator().manual_seed(1), SignalToNoise()
    for _ in range(5 * MEMORY):
        value = signal.update([torch.randn(20_000, generator=generator)])
    assert 0 <= value < 0.01
    fixed = SignalToNoise()
    for _ in range(3):
        value = fixed.update([torch.ones(8)])
    assert math.isnan(value)  # no noise to divide by


def test_what_is_not_finite_is_left_out_and_the_averages_resume_after_a_stop() -> None:
    signal = SignalToNoise()
    assert math.isnan(signal.update([torch.tensor([3.0, 0.0])]))  # one step says nothing
    known = signal.update([torch.tensor([1.0, 1.0])])  # 3 of 2: all signal, so no noise is left
    assert math.isnan(known)
    known = signal.update([torch.tensor([1.0, 3.0])])
    assert signal.update([torch.tensor([math.nan, 1.0])]) == known
    assert signal.update([torch.tensor([5.0, 5.0])]) == known  # its neighbour was left out
    again = SignalToNoise()
    again.load_state_dict(signal.state_dict())
    assert again.value == known
    assert again.update([torch.tensor([5.0, 5.0])]) == known  # the gradient before the stop is gone
