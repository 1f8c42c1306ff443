"""Samples through a model in batches that fit into memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from carv_3d.errors import CarvError

HOUR = 3600.0  # seconds; a step that takes longer is announced

log = logging.getLogger(__name__)


def run_in_batches(batch: Callable[[int, int], Tensor], out: Tensor, max_batch: int) -> int:
    """Fill `out` batch by batch, and halve the batch where memory runs out; what is done stays.

    Args:
        batch: gives out[begin:end] for (begin, end), end - begin <= max_batch.
        out: (N, ...).
        max_batch: samples at once, at most; batches are of about equal size.

    Returns:
        The max_batch that held, to start from next time.

    Raises:
        CarvError: a single sample is too much.
    """
    done, n, begin, said = 0, len(out), time.perf_counter(), False
    while done < n:
        batches = -(-(n - done) // max_batch)
        end = done + -(-(n - done) // batches)
        try:
            out[done:end] = batch(done, end)
            done = end
            seconds = (time.perf_counter() - begin) / done * n
            if seconds > HOUR and done < n and not said:
                said = True
                log.warning("%s samples take about %.1f hours a step: lower num_draws.", f"{n:,}", seconds / HOUR)
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if end - done == 1:
                raise CarvError(
                    "memory ran out on one sample of the teacher: take a smaller teacher or resolution, "
                    "half precision, or a machine with more memory."
                ) from error
        # outside of the handler, whose traceback holds on to the batch
        max_batch = (end - done) // 2
        log.warning("out of memory: continuing with batches of at most %d samples.", max_batch)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return max_batch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out, on any device."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    kinds = (torch.cuda.OutOfMemoryError, MemoryError)  # MemoryError: numpy's
    return isinstance(error, kinds) or any(w in str(error).lower() for w in words)


@contextmanager
def out_of_memory_as(sentence: str) -> Iterator[None]:
    """Memory that runs out in the block becomes a CarvError with this sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise CarvError(sentence) from error


def summed_gradients(
    losses: Callable[[slice], Tensor], n: int, parameters: Sequence[Tensor], max_batch: int, scale: float = 1.0
) -> tuple[list[Tensor], Tensor, Tensor, int]:
    """The gradient of `losses(which).sum()` over all n samples; memory holds the graph of one batch.

    A batch whose gradient is not finite counts as 0. Raises as `run_in_batches` does.

    Args:
        losses: the losses (n',) of some of the samples, with autograd.
        n: how many samples there are.
        parameters: what the gradient is of.
        max_batch: samples at once, at most.
        scale: multiplies the gradients as they are taken, for half precision.

    Returns:
        The gradient in each parameter's shape; the losses (N,), 0 where a sample was left out; finite (N,), False where
        it was; and the max_batch that held, to start from next time.
    """
    sums = [torch.zeros_like(p) for p in parameters]
    out = torch.zeros(n, device=parameters[0].device)
    finite = torch.ones(n, dtype=torch.bool, device=out.device)

    def batch(begin: int, end: int) -> Tensor:
        which = slice(begin, end)
        with torch.enable_grad():
            values = losses(which)
            grads = torch.autograd.grad(values.sum() * scale, parameters)
        good = bool(torch.stack([torch.isfinite(g).all() for g in grads]).all())
        kept = values.detach() if good else torch.zeros_like(values)
        if good:  # nothing from here on takes memory: a batch that ran out of it half added would be added again
            for total, g in zip(sums, grads):
                total.add_(g)
        else:
            finite[which] = False
        return kept

    held = run_in_batches(batch, out, max_batch)
    return sums, out, finite, held
