"""What a residual, explicit draws, a table or a saved state may be, and what the estimator may be set to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from carv_3d import CarvEstimator, Draws, NoiseSchedule
from carv_3d.core.estimator import EstimatorOptions
from carv_3d.core.extras import gathered
from carv_3d.errors import CarvError

SCHEDULE = NoiseSchedule.scaled_linear()
Z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def make(**options: Any) -> CarvEstimator:
    return CarvEstimator(SCHEDULE, EstimatorOptions(**{"max_batch": 1, **options}))


def eps_hat(z_t: Tensor, t: Tensor) -> Tensor:
    return 0.5 * z_t


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([torch.ones(1, 3), None], "returned an extra for some batches and none for others"),
        ([None, torch.ones(1, 3)], "returned an extra for some batches and none for others"),
        ([torch.ones(1, 3), torch.ones(1, 2)], r"samples of \(2,\) in torch.float32, and those of an earlier batch"),
        ([torch.ones(1, 3), torch.ones(1, 3).double()], r"samples of \(3,\) in torch.float64"),
        ([torch.ones(1, 3).to_sparse()], "the residual's extra is a torch.sparse_coo tensor on cpu"),
        ([torch.ones(1, 3, device="meta")], "the residual's extra is a torch.strided tensor on meta"),
        ([torch.ones(2, 3)], r"the residual's extra is \(2, 3\); it must be a tensor that begins with 1 samples"),
    ],
)
def test_all_batches_have_like_extras_or_none_has(given: list[Tensor | None], sentence: str) -> None:
    extra = None
    for begin, second in enumerate(given[:-1]):
        if second is not None:  # the estimator begins to gather with the first one
            extra = gathered(extra, 2, begin, second, Z[:1])
    with pytest.raises(CarvError, match=sentence):
        gathered(extra, 2, len(given) - 1, given[-1], Z[:1])


def test_a_residual_with_an_extra_in_every_second_batch_is_refused() -> None:
    calls: list[int] = []

    def residual(z_t: Tensor, t: Tensor, eps: Tensor) -> Any:
        calls.append(len(z_t))
        return z_t if len(calls) % 2 else (z_t, z_t)

    with pytest.raises(CarvError, match="an extra for some batches and none for others"):
        make(num_draws=2).estimate_residual(Z, residual)


@pytest.mark.parametrize(
    ("residual", "sentence"),
    [
        (lambda z_t, t, eps: z_t.to(torch.complex64), "returned numbers of type torch.complex64"),
        (lambda z_t, t, eps: z_t > 0, "returned numbers of type torch.bool"),
        (lambda z_t, t, eps: z_t.long(), "returned numbers of type torch.int64"),
        (lambda z_t, t, eps: z_t.to_sparse(), "returned a torch.sparse_coo tensor"),
        (lambda z_t, t, eps: z_t.to("meta"), "returned a tensor on meta for z_t on cpu"),
        (lambda z_t, t: z_t, "the residual is called with z_t, t and eps, which it does not take"),
    ],
)
def test_a_residual_is_of_the_kind_of_a_prediction(residual: Callable[..., Any], sentence: str) -> None:
    with pytest.raises(CarvError, match=sentence):
        make().estimate_residual(Z, residual)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weights": torch.full((2, 2), math.nan)}, "the draws' weights are p/q: they must be finite"),
        ({"weights": torch.full((2, 2), -1.0)}, "none below 0"),
        ({"weights": torch.ones(2, 2, dtype=torch.complex64)}, "finite real numbers"),
        ({"eps": torch.ones(2, 2, 4, 4, 4, dtype=torch.complex64)}, "eps are of type torch.complex64"),
        ({"eps": torch.ones(2, 2, 4, 4, 4, dtype=torch.long)}, "eps are of type torch.int64"),
    ],
)
def test_draws_have_real_noise_and_weights_that_are_probability_ratios(change: dict[str, Any], sentence: str) -> None:
    draws = {"t": torch.tensor([[5, 6], [7, 8]]), "eps": torch.zeros(2, 2, 4, 4, 4), "weights": torch.ones(2, 2)}
    make().estimate(Z, eps_hat, draws=Draws(**draws))  # type: ignore[arg-type]
    with pytest.raises(CarvError, match=sentence):
        make().estimate(Z, eps_hat, draws=Draws(**{**draws, **change}))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("proposal", ["uniform", "weight", "adaptive"])
def test_a_table_of_weights_is_finite_and_not_negative_in_its_range(value: float, proposal: Any) -> None:
    weights = torch.ones(1000)
    weights[10] = value
    options = EstimatorOptions(proposal=proposal, min_step=20)
    estimator = CarvEstimator(SCHEDULE, options, weights=weights)
    estimator.estimate_residual(Z, lambda z_t, t, eps: z_t)
    estimator.set_range(10, 980)
    with pytest.raises(CarvError, match=r"negative or not finite on the timesteps 10 \.\. 980"):
        estimator.estimate_residual(Z, lambda z_t, t, eps: z_t)


def test_a_table_of_weights_is_of_real_numbers() -> None:
    for weights in (torch.ones(1000, dtype=torch.complex64), torch.ones(1000).to_sparse()):
        with pytest.raises(CarvError, match="they must be a dense tensor of real numbers"):
            CarvEstimator(SCHEDULE, EstimatorOptions(), weights=weights)


@pytest.mark.parametrize(
    ("latents", "sentence"),
    [
        (torch.randint(0, 3, (2, 4)), "latents are of type torch.int64"),
        (torch.tensor(3.0), r"latents have shape \(\)"),
        (torch.zeros([1] * 60), "latents have shape"),
    ],
)
def test_what_noise_is_drawn_for_is_looked_at_as_in_an_estimate(latents: Tensor, sentence: str) -> None:
    with pytest.raises(CarvError, match=sentence):
        make().draw(latents)


def test_embeddings_are_dense() -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    for cond in (torch.ones(2, 3).to_sparse(), nested):
        with pytest.raises(CarvError, match="cond has a sparse or nested tensor"):
            make().estimate(Z, lambda z_t, t, c: z_t, cond)


def test_what_may_be_set_is_looked_at() -> None:
    estimator = make(num_draws=4, antithetic=True)
    for name, value in (("max_batch", 0), ("max_batch", 1.5), ("num_draws", "8"), ("num_draws", 0), ("num_draws", 3)):
        with pytest.raises(CarvError, match=name if value != 3 else "pairs"):
            setattr(estimator, name, value)
    estimator.num_draws, estimator.max_batch = 6, 2
    scalars = estimator.estimate(Z, eps_hat).scalars
    assert (scalars["K"], scalars["max_batch"]) == (6, 2)
    assert (estimator.num_draws, estimator.max_batch) == (6, 2)


def spoilt(state: dict[str, Any], *path: str, value: float) -> dict[str, Any]:
    """The state with a table of this value."""
    name, *rest = path
    inner = spoilt(state[name], *rest, value=value) if rest else torch.full_like(state[name], value)
    return {**state, name: inner}


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize(
    ("options", "path", "sentence"),
    [
        ({"control_variate": True}, ("control", "squares"), "the saved control variate has numbers that are not"),
        ({"proposal": "adaptive"}, ("proposal", "sum"), "the saved adaptive proposal has numbers that are negative"),
        ({"proposal": "adaptive"}, ("proposal", "count"), "the saved adaptive proposal has numbers that are negative"),
    ],
)
def test_a_state_of_wild_numbers_is_refused(
    options: dict[str, Any], path: tuple[str, ...], sentence: str, value: float
) -> None:
    estimator = make(**options)
    estimator.estimate(Z, eps_hat)
    with pytest.raises(CarvError, match=sentence):
        make(**options).load_state_dict(spoilt(estimator.state_dict(), *path, value=value))


@pytest.mark.parametrize(
    "change", [{"non_finite": "a"}, {"non_finite": -1}, {"non_finite": 99}, {"shared_generator": 1}]
)
def test_a_state_that_is_refused_changes_nothing(change: dict[str, Any]) -> None:
    other = make(proposal="adaptive", min_step=5, max_step=60)
    other.estimate(Z, eps_hat)
    estimator = make(proposal="adaptive")
    before = estimator.state_dict()
    with pytest.raises(CarvError):
        estimator.load_state_dict({**other.state_dict(), **change})
    after = estimator.state_dict()
    assert (after["proposal"]["min_step"], after["proposal"]["max_step"]) == (20, 980)
    assert torch.equal(after["proposal"]["sum"], before["proposal"]["sum"])
    assert torch.equal(after["shared_generator"], before["shared_generator"])
