"""Rows through a model in batches that memory bears."""

from __future__ import annotations

import logging
from collections.abc import Callable

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
        except RuntimeError as error:
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
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(w in str(error).lower() for w in words)
