"""Gradients summed over batches of samples, also where memory runs out or a sample is not finite."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from carv_3d.core import batching
from carv_3d.core.batching import run_in_batches, summed_gradients

X = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.0], [2.0, 2.0], [-1.0, 4.0]])


def sample_losses(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    return (x * a).sum(1).square() + (x * b).sum(1)


def parameters() -> list[Tensor]:
    return [torch.tensor([0.3, -0.2]).requires_grad_(), torch.tensor([1.0, 0.5]).requires_grad_()]


@pytest.mark.parametrize("max_batch", [1, 2, 5, 9])
def test_the_sum_is_that_of_all_samples_at_once(max_batch: int) -> None:
    a, b = parameters()
    whole = torch.autograd.grad(sample_losses(a, b, X).sum() * 8.0, [a, b])
    sums, losses, finite, held = summed_gradients(
        lambda samples: sample_losses(a, b, X[samples]), len(X), [a, b], max_batch, scale=8.0
    )
    for got, expected in zip(sums, whole):
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(losses, sample_losses(a, b, X).detach())
    assert bool(finite.all())
    assert held == max_batch


@pytest.mark.parametrize("where", ["zeros_like", "isfinite", "stack", "where"])
def test_memory_that_runs_out_anywhere_counts_no_sample_twice(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = parameters()
    whole = torch.autograd.grad(sample_losses(a, b, X).sum(), [a, b])
    real, calls, armed = getattr(torch, where), [], []

    def failing(*given: object, **more: object) -> object:
        if armed:
            calls.append(1)
            if len(calls) == 2:
                raise RuntimeError("out of memory")
        return real(*given, **more)

    def losses(samples: slice) -> Tensor:
        armed.append(1)
        return sample_losses(a, b, X[samples])

    monkeypatch.setattr(torch, where, failing)
    sums, *_ = summed_gradients(losses, len(X), [a, b], 4)
    monkeypatch.undo()
    for got, expected in zip(sums, whole):
        torch.testing.assert_close(got, expected)


def test_a_batch_that_is_not_finite_is_left_out_and_reported() -> None:
    a, b = parameters()
    x = X.clone()
    x[3, 0] = float("nan")
    sums, losses, finite, _ = summed_gradients(lambda samples: sample_losses(a, b, x[samples]), len(x), [a, b], 1)
    assert finite.tolist() == [True, True, True, False, True]
    kept = x[[0, 1, 2, 4]]
    for got, expected in zip(sums, torch.autograd.grad(sample_losses(a, b, kept).sum(), [a, b])):
        torch.testing.assert_close(got, expected)
    assert losses[3] == 0


def test_a_step_of_many_hours_is_announced_after_its_first_batch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now, said = [0.0], list[int]()
    monkeypatch.setattr(batching.time, "perf_counter", lambda: now[0])

    def batch(begin: int, end: int) -> Tensor:
        now[0] += 1800.0
        said.append(len(caplog.records))
        return torch.zeros(end - begin)

    run_in_batches(batch, torch.ones(4), 2)
    assert said == [0, 0]  # an hour, and no more
    run_in_batches(batch, torch.ones(8), 2)
    assert said[2:] == [0, 1, 1, 1]
    assert caplog.records[0].getMessage() == "8 samples take about 2.0 hours a step: lower num_draws."
