"""One call a step: the estimator's loss, with options that may change at every call, and nothing that piles up."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from estimators import SCHEDULE, make, model, seeded, some_latents
from torch import Tensor

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.core.sds import MOST_KEPT, sds_loss
from carv_3d.errors import CarvError


def test_it_is_the_estimators_loss() -> None:
    first, second = some_latents(), some_latents()
    sds_loss(first, model, SCHEDULE, generator=seeded(1), num_draws=8, grad_clip=0.2, antithetic=True).backward()
    estimator = make(num_draws=8, grad_clip=0.2, antithetic=True)
    estimator.estimate(second, model, generator=seeded(1)).loss.backward()
    assert torch.equal(first.grad, second.grad)  # type: ignore[arg-type]


def test_what_changes_from_call_to_call_is_used() -> None:
    timesteps: list[Tensor] = []

    def spy(z_t: Tensor, t: Tensor) -> Tensor:
        timesteps.append(t)
        return z_t + 1

    schedule = NoiseSchedule.scaled_linear()
    clipped = []
    for low, high, K, clip in ((20, 40, 4, None), (900, 980, 2, 1e-3), (20, 40, 5, None)):
        latents = some_latents()
        options = {"min_step": low, "max_step": high, "num_draws": K, "grad_clip": clip}
        sds_loss(latents, spy, schedule, **options).backward()  # type: ignore[arg-type]
        assert len(timesteps[-1]) == 3 * K
        assert low <= int(timesteps[-1].min()) <= int(timesteps[-1].max()) <= high
        clipped.append(float(latents.grad.abs().max()) <= 1.5e-3)  # type: ignore[union-attr]
    assert clipped == [False, True, False]


def test_hundreds_of_steps_keep_nothing() -> None:
    schedule, latents = NoiseSchedule.scaled_linear(), torch.zeros(1, 2, requires_grad=True)

    def steps(n: int) -> int:
        for i in range(n):
            options = {"grad_clip": 2 + i / 1000, "min_step": i % 20, "max_step": 999 - i % 20, "shared_seed": i}
            sds_loss(latents, lambda z_t, t: z_t, schedule, num_draws=1, **options)  # type: ignore[arg-type]
        gc.collect()
        return len(gc.get_objects())

    before = steps(50)
    assert steps(400) < before + 200
    assert [len(kept) for kept in schedule.estimators.values()] == [MOST_KEPT]
    for i in range(50):
        sds_loss(latents, lambda z_t, t: z_t, schedule, grad_clip=2 + i / 1000, num_draws=1 + i % 3, min_step=i)
    assert [len(kept) for kept in schedule.estimators.values()] == [MOST_KEPT]


@pytest.mark.parametrize("option", [{"proposal": "adaptive"}, {"control_variate": True}])
def test_what_learns_needs_an_estimator(option: dict[str, object]) -> None:
    with pytest.raises(CarvError, match="make a CarvEstimator, and keep that"):
        sds_loss(some_latents(), model, SCHEDULE, **option)


def test_two_threads_with_one_schedule_keep_to_their_own_ranges() -> None:
    schedule, meet = NoiseSchedule.scaled_linear(), threading.Barrier(2, timeout=10)
    inside: list[bool] = []

    class Latents(Tensor):
        """Both threads have set their range before either draws: `numel` is asked for between the two."""

        def numel(self) -> int:
            meet.wait()
            return super().numel()

    def work(low: int, high: int) -> None:
        def spy(z_t: Tensor, t: Tensor) -> Tensor:
            inside.append(bool(((t >= low) & (t <= high)).all()))
            return z_t

        sds_loss(torch.zeros(1, 2).as_subclass(Latents).requires_grad_(), spy, schedule, min_step=low, max_step=high)

    threads = [threading.Thread(target=work, args=ends) for ends in ((10, 20), (900, 950))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == [True, True]


def test_threads_that_have_ended_leave_nothing_and_those_at_work_keep_their_own() -> None:
    schedule = NoiseSchedule.scaled_linear()

    def work() -> None:
        sds_loss(some_latents(), model, schedule)

    work()
    kept = dict(schedule.estimators[threading.get_ident()])
    for _ in range(MOST_KEPT + 2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(schedule.estimators) == 2
    assert schedule.estimators[threading.get_ident()] == kept
