"""Light backgrounds: their range, their tint, and their draws."""

from __future__ import annotations

import pytest
import torch

from carv_3d.scenes.backgrounds import light_colors, white_or_light


def draws(darkest: float, tint: float, count: int = 4000) -> torch.Tensor:
    return light_colors(count, darkest, tint, torch.Generator().manual_seed(0))


def test_colors_lie_in_their_range() -> None:
    colors = draws(0.7, 0.2)
    assert colors.shape == (4000, 3)
    assert float(colors.min()) == pytest.approx(0.7 * 0.8, abs=0.02)
    assert float(colors.max()) == pytest.approx(1.0, abs=0.01)
    assert float(colors.mean()) == pytest.approx(0.85 * 0.9, abs=0.005)
    ratio = colors.amin(1) / colors.amax(1)
    assert float(ratio.min()) == pytest.approx(0.8, abs=0.02)


def test_without_tint_they_are_gray_and_with_all_of_it_channels_are_independent() -> None:
    gray = draws(0.5, 0.0)
    assert torch.equal(gray[:, 0], gray[:, 1])
    assert torch.equal(gray[:, 0], gray[:, 2])
    assert float(gray.var(0)[0]) == pytest.approx(0.25 / 12, rel=0.1)
    free = draws(1.0, 1.0)
    assert float(free.var()) == pytest.approx(1 / 12, rel=0.05)
    assert float((torch.corrcoef(free.T) - torch.eye(3)).abs().max()) < 4 / 4000**0.5


def test_draws_come_from_the_generator() -> None:
    torch.manual_seed(1)
    first = draws(0.7, 0.2, 5)
    torch.manual_seed(2)
    assert torch.equal(draws(0.7, 0.2, 5), first)


def test_backgrounds_are_white_or_light_in_their_shares() -> None:
    generator = torch.Generator().manual_seed(0)
    colors = torch.stack([white_or_light(2, 0.6, 0.5, 0.2, generator) for _ in range(1000)])
    white = (colors == 1).flatten(1).all(dim=1)
    assert float(white.float().mean()) == pytest.approx(0.4, abs=4 * (0.24 / 1000) ** 0.5)
    assert 0.4 <= float(colors.min()) < 0.45
    assert float(colors[~white].mean()) == pytest.approx(0.75 * 0.9, abs=0.01)


def test_the_stream_of_random_numbers_does_not_depend_on_the_share() -> None:
    states = []
    for share in (0.0, 0.5, 1.0):
        generator = torch.Generator().manual_seed(0)
        white_or_light(3, share, 0.5, 0.2, generator)
        states.append(generator.get_state())
    assert all(torch.equal(state, states[0]) for state in states)
