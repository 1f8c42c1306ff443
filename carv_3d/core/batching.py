"""Rows through a model in batches that memory bears."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from carv_3d.errors import CarvError

log = logging.getLogger(__name__)


def run_in_batches(batch: Callable[[int, int], Tensor], out: Tensor, max_batch: int) -> int:
    """Fills `out` (N, ...) with `batch(begin, end)`, end - begin <= max_batch, batches of about equal size.

    Where memory runs out the batch is halved and tried again; finished rows stay. Returns the max_batch
    that held, to start from next time. Raises CarvError where a single row is too much.
    """
    done, n = 0, len(out)
    while done < n:
        batches = -(-(n - done) // max_batch)
        end = done + -(-(n - done) // batches)
        try:
            out[done:end] = batch(done, end)
            done = end
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if end - done == 1:
                raise CarvError(
                    "memory ran out on one row of the teacher: take a smaller teacher or resolution, "
                    "half precision, or a machine with more memory."
                ) from error
        # outside of the handler, whose traceback holds on to the batch
        max_batch = (end - done) // 2
        log.warning("out of memory: going on with batches of at most %d rows.", max_batch)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return max_batch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out, on any device."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    kinds = (torch.cuda.OutOfMemoryError, MemoryError)  # MemoryError: numpy's
    return isinstance(error, kinds) or any(w in str(error).lower() for w in words)


@contextmanager
def out_of_memory_told(sentence: str) -> Iterator[None]:
    """Memory that runs out in the block becomes a CarvError that says `sentence`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise CarvError(sentence) from error


@dataclass
class RowGradients:
    """What `summed_gradients` found.

    gradients: the gradient of the sum of all rows' losses, in each parameter's shape.
    losses: (N,), 0 where a row was left out. finite: (N,) bool, False where it was.
    max_batch: what held, to start from next time.
    """

    gradients: list[Tensor]
    losses: Tensor
    finite: Tensor
    max_batch: int


def summed_gradients(
    losses: Callable[[slice], Tensor], n: int, parameters: Sequence[Tensor], max_batch: int, scale: float = 1.0
) -> RowGradients:
    """The gradient of `losses(rows).sum()` over all n rows, batch by batch: memory holds one batch's graph.

    losses: the losses (rows,) of some rows, with autograd. scale: multiplies the gradients as they are taken, for
    half precision. A batch whose gradient is not finite counts as 0. Raises as `run_in_batches` does.
    """
    sums = [torch.zeros_like(p) for p in parameters]
    out = torch.zeros(n, device=parameters[0].device)
    finite = torch.ones(n, dtype=torch.bool, device=out.device)

    def batch(begin: int, end: int) -> Tensor:
        rows = slice(begin, end)
        with torch.enable_grad():
            values = losses(rows)
            grads = torch.autograd.grad(values.sum() * scale, parameters)
        good = bool(torch.stack([torch.isfinite(g).all() for g in grads]).all())
        found = values.detach() if good else torch.zeros_like(values)
        if good:  # nothing from here on takes memory: a batch that ran out of it half added would be added again
            for total, g in zip(sums, grads):
                total.add_(g)
        else:
            finite[rows] = False
        return found

    held = run_in_batches(batch, out, max_batch)
    return RowGradients(sums, out, finite, held)
