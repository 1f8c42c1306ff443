"""What a residual gives next to f: a second tensor of the same samples, gathered batch by batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from carv_3d.core.arguments import described
from carv_3d.errors import CarvError


def gathered(extra: Tensor | None, count: int, begin: int, second: Any, z_t: Tensor) -> Tensor:
    """The second tensors of the batches so far, with one batch's more: every batch has one, or none has.

    Args:
        extra: (count, ...), those before; None for the first.
        count: samples of all batches.
        begin: the first sample of this one.
        second: what came next to f, (N, ...), or None.
        z_t: (N, ...), the batch.

    Returns:
        (count, ...), `extra` itself where there was one.

    Raises:
        CarvError: another kind of thing, another shape than before, or one in some batches alone.
    """
    if second is not None:
        check_extra(second, z_t, extra)
    if second is None or (extra is None and begin > 0):
        raise CarvError("the residual returned an extra for some batches and none for others; return it for all.")
    if extra is None:
        extra = second.new_empty(count, *second.shape[1:])
    extra[begin : begin + len(second)] = second
    return extra


def check_extra(value: Any, z_t: Tensor, before: Tensor | None = None) -> None:
    """CarvError unless a residual's second part is a dense tensor (N, ...) for z_t (N, ...), as the one before it."""
    if not isinstance(value, Tensor) or value.shape[:1] != z_t.shape[:1]:
        given = tuple(value.shape) if isinstance(value, Tensor) else described(value)
        raise CarvError(f"the residual's extra is {given}; it must be a tensor that begins with {len(z_t)} samples.")
    if value.layout != torch.strided or value.device != z_t.device:
        raise CarvError(
            f"the residual's extra is a {value.layout} tensor on {value.device}; it must be a dense one on "
            f"{z_t.device}."
        )
    if before is not None and (value.shape[1:], value.dtype) != (before.shape[1:], before.dtype):
        raise CarvError(
            f"the residual's extra has samples of {tuple(value.shape[1:])} in {value.dtype}, and those of an earlier "
            f"batch are {tuple(before.shape[1:])} in {before.dtype}; they must be equal."
        )
