"""Every option of the estimator does something: the wires from its name to the part that uses it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from estimators import make, model, seeded, some_latents
from torch import Tensor

from carv_3d.core.estimator import CarvEstimator, EstimatorOptions
from carv_3d.core.proposals import AdaptiveProposal
from carv_3d.core.schedule import NoiseSchedule

# option -> (its value, what must go with it)
OTHER: dict[str, tuple[Any, dict[str, Any]]] = {
    "num_draws": (8, {}),
    "proposal": ("uniform", {}),
    "stratify": ("none", {}),
    "antithetic": (True, {}),
    "weighting": ("fantasia3d", {}),
    "min_step": (700, {}),
    "max_step": (300, {}),
    "grad_clip": (0.01, {}),
    "control_variate": (True, {}),
    "adaptive_bins": (3, {"proposal": "adaptive"}),
    "adaptive_floor": (0.9, {"proposal": "adaptive"}),
    "adaptive_decay": (0.1, {"proposal": "adaptive"}),
    "rank": (1, {"stratify": "global", "world_size": 2}),
    "world_size": (2, {"stratify": "global"}),
    "shared_seed": (5, {"stratify": "global", "world_size": 2}),
}


def gradient(**options: Any) -> Tensor:
    """Of the third step, so that what is learnt shows too."""
    estimator, g = make(**options), seeded(1)
    grads = [estimator.estimate(some_latents(), model, generator=g).grad for _ in range(3)]
    return grads[-1]


@pytest.mark.parametrize("name", [f.name for f in fields(EstimatorOptions) if f.name != "max_batch"])
def test_every_option_changes_the_estimate(name: str) -> None:
    value, more = OTHER[name]
    assert not torch.equal(gradient(**{name: value}, **more), gradient(**more))


def test_max_batch_bounds_the_samples_at_once_and_changes_nothing() -> None:
    sizes: list[int] = []

    def spy(z_t: Tensor, t: Tensor) -> Tensor:
        sizes.append(len(z_t))
        return model(z_t, t)

    a, b = (make(num_draws=4, max_batch=n).estimate(some_latents(), spy, generator=seeded(1)) for n in (5, 100))
    assert sizes == [4, 4, 4, 12]
    torch.testing.assert_close(a.grad, b.grad)


def test_the_adaptive_options_are_the_proposals() -> None:
    proposal = make(proposal="adaptive", adaptive_bins=7, adaptive_floor=0.3, adaptive_decay=0.5).proposal
    assert isinstance(proposal, AdaptiveProposal)
    assert (proposal.floor, proposal.decay, len(proposal.state_dict()["sum"])) == (0.3, 0.5, 7)


def test_where_options_begin_is_not_where_they_stay() -> None:
    estimator = make(num_draws=2, min_step=100, max_step=200)
    estimator.set_range(300, 400)
    estimator.num_draws = 6
    out = estimator.estimate(some_latents(), model, generator=seeded(1))
    assert out.t.shape == (3, 6)
    assert 300 <= int(out.t.min()) <= int(out.t.max()) <= 400
    assert "K=6" in repr(estimator)
    assert "300 .. 400" in repr(estimator)


def test_a_table_of_weights_is_what_the_proposal_follows() -> None:
    table = torch.zeros(1000)
    table[[100, 900]] = torch.tensor([1.0, 3.0])
    estimator = CarvEstimator(NoiseSchedule.scaled_linear(), EstimatorOptions(num_draws=64), weights=table)
    t = estimator.draw(some_latents(), seeded(1)).t
    assert sorted(set(t.flatten().tolist())) == [100, 900]
    assert [(row == 900).sum().item() for row in t] == [48] * 3  # strata: exactly three quarters


def test_one_timestep_is_a_range() -> None:
    out = make(min_step=500, max_step=500).estimate(some_latents(), model, generator=seeded(1))
    assert bool((out.t == 500).all())
