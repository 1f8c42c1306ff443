"""What callers give score distillation: refused in one sentence where it cannot be meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from carv_3d.core.arguments import described
from carv_3d.core.checks import check_numbers
from carv_3d.core.kinds import convert
from carv_3d.errors import CarvError, shown

LOWEST, HIGHEST = -0.5, 2.0  # of a render: what rounding and interpolation overshoot is far within
MOST_STEPS = 2**53  # that a float counts
MOST_PIXELS = 2**13  # of a side that is encoded


def whole_step(name: str, value: Any) -> int:
    """A step or an epoch as a whole number.

    Args:
        name: "step" or "epoch", for the message.
        value: as given; a tensor of one number will do.

    Raises:
        CarvError: it is no whole number from 0 to 2^53.
    """
    if type(value) is int and 0 <= value <= MOST_STEPS:
        return value
    single = isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta
    is_whole, number = convert(value.item() if single else value, int)
    if not is_whole or not 0 <= number <= MOST_STEPS:
        raise CarvError(f"{name} is {described(value)}; it must be a whole number from 0 to 2^53.")
    return int(number)


def checked_size(size: Any) -> tuple[int, int] | None:
    """The (height, width) that is encoded, or None.

    Raises:
        CarvError: it is no two whole numbers from 1 to 8192.
    """
    if size is None:
        return None
    both = list(size) if isinstance(size, Sequence) and not isinstance(size, (str, bytes)) else []
    numbers = [convert(side, int) for side in both]
    if len(both) != 2 or not all(is_whole and 1 <= side <= MOST_PIXELS for is_whole, side in numbers):
        raise CarvError(f"size is {shown(size)}; it must be (height, width), whole numbers from 1 to {MOST_PIXELS}.")
    return int(numbers[0][1]), int(numbers[1][1])


def check_renders(rgb: Any, channels: int, rgb_as_latents: bool) -> None:
    """CarvError unless these are renders (B, H, W, channels), images in about [0, 1] or latents.

    Args:
        rgb: as given.
        channels: of the teacher's images, or of its latents.
        rgb_as_latents: whether they are latents, which may have any value.
    """
    if (
        type(rgb) is not Tensor
        or rgb.dtype != torch.float32
        or rgb.layout != torch.strided
        or rgb.is_meta
        or rgb.is_nested
    ):
        check_numbers("rgb", rgb, "(B, H, W, 3), with autograd")
    if rgb.dim() != 4 or rgb.shape[-1] != channels or 0 in rgb.shape:
        kind = "latents" if rgb_as_latents else "images"
        raise CarvError(f"guidance takes {kind} (B, H, W, {channels}), not {tuple(rgb.shape)}.")
    if rgb_as_latents:
        return
    low, high = torch.stack(torch.aminmax(rgb.detach())).tolist()
    if high > HIGHEST:
        raise CarvError(f"rgb reaches {high:g}; images are in [0, 1], so divide by 255.")
    if low < LOWEST:
        raise CarvError(f"rgb goes down to {low:g}; images are in [0, 1]: for some in [-1, 1] give rgb / 2 + 0.5.")
