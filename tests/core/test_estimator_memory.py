"""The estimator's batches: bounded, halved where memory runs out, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from estimators import make, model, seeded, some_latents
from torch import Tensor

from carv_3d.errors import CarvError


@pytest.mark.parametrize("max_batch", [1, 2, 5, 7, 100])
def test_batches_are_bounded_and_change_nothing(max_batch: int) -> None:
    sizes: list[int] = []
    cond = torch.tensor([1.0, 2.0, 4.0])

    def spy(z_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        sizes.append(len(z_t))
        assert len(t) == len(c) == len(z_t)
        assert not torch.is_grad_enabled()
        return model(z_t, t, c)

    whole = make(num_draws=5, max_batch=1000).estimate(some_latents(), model, (cond,), seeded(1))
    parts = make(num_draws=5, max_batch=max_batch).estimate(some_latents(), spy, (cond,), seeded(1))
    assert max(sizes) <= max_batch
    assert sum(sizes) == 15 == parts.scalars["samples"]
    assert len(sizes) == -(-15 // max_batch)
    assert max(sizes) - min(sizes) <= 1  # of about equal size
    assert torch.equal(whole.grad, parts.grad)


class OutOfMemory:
    """A model that fails above a number of samples, in the words of a device."""

    def __init__(self, bears: int, error: Exception) -> None:
        self.bears, self.error, self.calls = bears, error, 0

    def __call__(self, z_t: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        if len(z_t) > self.bears:
            raise self.error
        return model(z_t, t)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory"),
    ],
)
@pytest.mark.parametrize("bears", [1, 3, 8])
def test_when_memory_runs_out_the_batch_halves_and_the_run_continues(bears: int, error: Exception) -> None:
    whole = make(num_draws=8).estimate(some_latents(), model, generator=seeded(1))
    estimator, failing = make(num_draws=8, max_batch=24), OutOfMemory(bears, error)
    out = estimator.estimate(some_latents(), failing, generator=seeded(1))
    assert torch.equal(out.grad, whole.grad)
    assert bears // 2 < estimator.max_batch <= bears
    assert failing.calls <= 5 + 24 // estimator.max_batch  # 24, 12, 6, 3 and 1 at once are tried
    assert out.scalars["max_batch"] == estimator.max_batch
    failing.calls = 0
    estimator.estimate(some_latents(), failing, generator=seeded(2))  # what was learnt stays learnt
    assert failing.calls == -(-24 // estimator.max_batch)


def test_other_errors_and_a_single_sample_too_large_are_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        make().estimate(some_latents(), OutOfMemory(0, RuntimeError("size mismatch")))
    with pytest.raises(CarvError, match="one sample"):
        make().estimate(some_latents(), OutOfMemory(0, RuntimeError("out of memory")))
