"""Plain light backgrounds: one recipe for the renders of a run and for the images that carv-tiny was trained on."""

from __future__ import annotations

import torch
from torch import Tensor


def light_colors(count: int, darkest: float, tint: float, generator: torch.Generator | None = None) -> Tensor:
    """Colors ``(count, 3)``: a gray in ``[darkest, 1]`` times, for each channel alone, a factor in ``[1 - tint, 1]``.

    ``darkest=1, tint=1`` are independent uniform channels. Saturated colors take carv-tiny's autoencoder off its
    manifold; light and hardly colored ones do not.
    """
    value = darkest + (1 - darkest) * torch.rand(count, 1, generator=generator)
    return value * (1 - tint * torch.rand(count, 3, generator=generator))


def white_or_light(
    count: int, share: float, darkest: float, tint: float, generator: torch.Generator | None = None
) -> Tensor:
    """Colors (count, 3): `light_colors` in a `share` of the calls, white in the others."""
    light = torch.rand((), generator=generator) < share
    colors = light_colors(count, darkest, tint, generator)  # drawn either way: the stream does not depend on the share
    return colors if light else torch.ones(count, 3)
