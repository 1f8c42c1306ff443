"""Proposals: exact inverse CDFs, weights that keep the expectation, one table for every range, the lag."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from carv_3d.core.proposals import AdaptiveProposal, make_proposal
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError

SCHEDULE = NoiseSchedule.scaled_linear()


def taught(value: float = 5.0, **kwargs: Any) -> AdaptiveProposal:
    """Adaptive over 20 .. 980, with large gradients seen at t < 200."""
    proposal = AdaptiveProposal(SCHEDULE, "sds", 20, 980, **kwargs)
    t = torch.arange(20, 981)
    w = SCHEDULE.w(t, "sds").double()
    proposal.update(t, torch.where(t < 200, value * w, w).square())
    return proposal


def midpoints(n: int) -> Tensor:
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


@pytest.mark.parametrize("name", ["uniform", "weight", "adaptive"])
@pytest.mark.parametrize("weighting", ["sds", "uniform", "fantasia3d"])
def test_q_is_a_distribution_and_the_weights_average_to_one(name: str, weighting: str) -> None:
    proposal = make_proposal(name, SCHEDULE, weighting, 20, 980)
    q = proposal.q
    assert q.shape == (961,)
    assert float(q.sum()) == pytest.approx(1, abs=1e-12)
    t, weights = proposal.sample(midpoints(400_000))
    assert float(weights.mean()) == pytest.approx(1, abs=1e-4)
    h = torch.sin(t.double())  # E_q[(p/q) h] = E_p[h] for any h
    torch.testing.assert_close(
        (weights * h).mean(), torch.sin(torch.arange(20, 981).double()).mean(), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("name", ["uniform", "weight", "adaptive"])
def test_inverse_cdf_is_exact(name: str) -> None:
    proposal = taught() if name == "adaptive" else make_proposal(name, SCHEDULE, "sds", 20, 980)
    n = 400_000
    t, weights = proposal.sample(midpoints(n))
    counts = torch.bincount(t, minlength=1000)
    assert counts[:20].sum() == counts[981:].sum() == 0
    assert float((counts[20:981] / n - proposal.q).abs().max()) <= 1.0 / n  # as near as n points can be
    torch.testing.assert_close(weights, 1 / (961 * proposal.q[t - 20]), rtol=1e-9, atol=0)
    assert bool((t.diff() >= 0).all())


def test_known_timesteps() -> None:
    proposal = make_proposal("uniform", SCHEDULE, "sds", 10, 13)
    u = torch.tensor([[0.0, 0.2499, 0.25], [0.5, 0.75, 1 - 2**-53]], dtype=torch.float64)
    t, weights = proposal.sample(u)
    assert t.tolist() == [[10, 10, 11], [12, 13, 13]]
    assert torch.equal(weights, torch.ones_like(weights))  # exactly
    single = make_proposal("weight", SCHEDULE, "sds", 500, 500)
    t, weights = single.sample(torch.rand(7))
    assert t.tolist() == [500] * 7
    assert torch.equal(weights, torch.ones_like(weights))


def test_weight_proposal_makes_the_weights_cancel_w() -> None:
    proposal = make_proposal("weight", SCHEDULE, "sds", 20, 980)
    t, weights = proposal.sample(midpoints(100))
    constant = weights * SCHEDULE.w(t, "sds").double()
    torch.testing.assert_close(constant, SCHEDULE.w(torch.arange(20, 981)).double().mean().expand(100))


def test_timesteps_of_weight_zero_are_never_drawn() -> None:
    table = torch.tensor([0.0, 0.0, 1.0, 0.0, 3.0, 0.0])
    proposal = make_proposal("weight", NoiseSchedule(torch.linspace(0.9, 0.1, 6)), table)
    t, weights = proposal.sample(torch.tensor([0.0, 0.2499, 0.25, 1 - 1e-16]).double())
    assert t.tolist() == [2, 2, 4, 4]
    torch.testing.assert_close(weights, torch.tensor([4 / 6, 4 / 6, 4 / 18, 4 / 18]).double())
    with pytest.raises(CarvError, match="take the proposal 'uniform'"):
        make_proposal("weight", NoiseSchedule(torch.linspace(0.9, 0.1, 6)), table, 0, 1).sample(torch.rand(1))


@pytest.mark.parametrize("name", ["uniform", "weight"])
def test_a_range_that_moves_builds_no_table(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proposal = make_proposal(name, SCHEDULE, "sds", 20, 980)
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda *_, **__: pytest.fail("a running sum was made anew"))
    for low, high in ((100, 300), (0, 999), (300, 300), (20, 980)):
        proposal.set_range(low, high)
        t, _ = proposal.sample(midpoints(1000))
        assert low <= int(t.min()) <= int(t.max()) <= high


@pytest.mark.parametrize("weighting", ["sds", "uniform", "fantasia3d"])
@pytest.mark.parametrize(("low", "high"), [(20, 980), (0, 999), (0, 0), (650, 651), (940, 999)])
def test_one_running_sum_serves_every_range(weighting: str, low: int, high: int) -> None:
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(low), dtype=torch.float64)
    t, weights = make_proposal("weight", SCHEDULE, weighting, low, high).sample(u)
    w = SCHEDULE.weights(weighting).double()[low : high + 1]
    cdf = w.cumsum(0) / w.sum()  # the table of this range alone
    assert torch.equal(t, torch.searchsorted(cdf, u, right=True) + low)
    torch.testing.assert_close(weights, w.mean() / w[t - low], rtol=1e-14, atol=0)


def test_a_range_of_a_tiny_part_of_the_weight_is_drawn_rightly() -> None:
    table = torch.exp(-torch.arange(1000, dtype=torch.float64) / 10)  # 1e-39 of the sum lies from 900 on
    t, _ = make_proposal("weight", SCHEDULE, table, 900, 909).sample(midpoints(100_000))
    expected = table[900:910] / table[900:910].sum()
    torch.testing.assert_close(torch.bincount(t - 900) / 1e5, expected.float(), rtol=0, atol=2e-5)


def test_weights_outside_of_the_range_do_not_matter() -> None:
    table = SCHEDULE.weights("sds").clone()
    u, expected = midpoints(1000), make_proposal("weight", SCHEDULE, "sds", 20, 980)
    table[[0, 3, 990]] = torch.tensor([float("inf"), -5.0, float("nan")])
    proposal = make_proposal("weight", SCHEDULE, table, 20, 980)
    assert torch.equal(proposal.sample(u)[0], expected.sample(u)[0])
    proposal.set_range(3, 980)
    with pytest.raises(CarvError, match=r"not finite on the timesteps 3 \.\. 980"):
        proposal.sample(u)


def test_the_end_of_a_range_is_reached_and_not_passed() -> None:
    table = torch.tensor([1e6, 0.1, 0.0, 0.7, 0.0, 0.3])
    proposal = make_proposal("weight", NoiseSchedule(torch.linspace(0.9, 0.1, 6)), table, 1, 4)
    t, weights = proposal.sample(torch.tensor([0.0, 0.13, 1 - 2**-53, 1.0], dtype=torch.float64))
    assert t.tolist() == [1, 3, 3, 3]
    torch.testing.assert_close(weights, torch.tensor([2.0, 2 / 7, 2 / 7, 2 / 7]).double(), rtol=1e-6, atol=0)


def test_adaptive_starts_as_the_weight_proposal_with_the_floor() -> None:
    adaptive = AdaptiveProposal(SCHEDULE, "sds", 20, 980)
    weight = make_proposal("weight", SCHEDULE, "sds", 20, 980)
    torch.testing.assert_close(adaptive.q, 0.9 * weight.q + 0.1 / 961)


def test_adaptive_goes_to_the_rms_of_what_it_was_fed() -> None:
    proposal = taught(5.0, prior=1e-9)
    w = SCHEDULE.w(torch.arange(20, 981), "sds").double()
    expected = w * torch.where(torch.arange(20, 981) < 200, 5.0, 1.0)
    torch.testing.assert_close(proposal.q, 0.9 * expected / expected.sum() + 0.1 / 961)


def test_adaptive_learns_per_bin() -> None:
    proposal = AdaptiveProposal(SCHEDULE, "uniform", 0, 999, prior=1e-9)
    t = torch.arange(0, 1000)
    proposal.update(t, (t % 20 + 1).double())  # within a bin only the mean square remains
    torch.testing.assert_close(proposal.q, torch.full((1000,), 1e-3).double())


@pytest.mark.parametrize("floor", [0.05, 0.1, 0.5])
def test_the_floor_bounds_the_weights(floor: float) -> None:
    proposal = AdaptiveProposal(SCHEDULE, "sds", 20, 980, floor=floor, prior=1e-9)
    t = torch.full((10_000,), 970)
    for _ in range(50):  # as lopsided as can be
        proposal.update(t, torch.full(t.shape, 1e6))
        proposal.update(torch.arange(20, 960), torch.full((940,), 1e-12))
    largest = 1 / (961 * float(proposal.q.min()))
    assert 0.9 / floor < largest <= 1 / floor * (1 + 1e-9)


def test_an_update_waits_for_the_next_sample() -> None:
    proposal = taught()
    u = torch.rand(64, generator=torch.Generator().manual_seed(0))
    before = proposal.q.clone()
    t, weights = proposal.sample(u)
    proposal.update(t, torch.full(t.shape, 100.0))
    # what was sampled keeps the weights of the q that it was sampled from
    torch.testing.assert_close(weights, 1 / 961 / before[t - 20])
    assert not torch.allclose(proposal.q, before)
    assert not torch.equal(proposal.sample(u)[1], weights)


@pytest.mark.parametrize("decay", [0.9, 1.0])
def test_the_count_of_draws_fades(decay: float) -> None:
    proposal = AdaptiveProposal(SCHEDULE, "uniform", decay=decay, bins=4)
    for _ in range(7):
        proposal.update(torch.tensor([10]), torch.tensor([4.0]))
    expected = sum(decay**n for n in range(7))
    assert proposal.state_dict()["count"].tolist() == pytest.approx([expected, 0, 0, 0])
    assert proposal.state_dict()["sum"].tolist() == pytest.approx([4 * expected, 0, 0, 0])


def test_old_draws_fade_and_bad_values_are_left_out() -> None:
    proposal = AdaptiveProposal(SCHEDULE, "uniform", 0, 999, decay=0.5, prior=1e-9, bins=2)
    t = torch.tensor([100, 100, 900, 900])
    for _ in range(40):
        proposal.update(t, torch.tensor([9.0, float("nan"), 1.0, float("inf")]))
    assert float(proposal.q[0] / proposal.q[-1]) == pytest.approx((0.9 * 1.5 + 0.1) / (0.9 * 0.5 + 0.1))
    for _ in range(40):
        proposal.update(t, torch.tensor([1.0, 1.0, 1.0, 1.0]))
    assert float(proposal.q[0] / proposal.q[-1]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["uniform", "weight", "adaptive"])
def test_state_comes_back(name: str) -> None:
    first = taught() if name == "adaptive" else make_proposal(name, SCHEDULE, "sds", 20, 980)
    first.set_range(50, 700)
    second = make_proposal(name, SCHEDULE, "sds")
    second.load_state_dict(first.state_dict())
    u = torch.rand(32)
    for a, b in zip(first.sample(u), second.sample(u)):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: make_proposal("importance", SCHEDULE), "uniform, weight, adaptive"),
        (lambda: make_proposal("uniform", SCHEDULE, "sds", 5, 4), "not above"),
        (lambda: make_proposal("uniform", SCHEDULE, "sds", 5, 1000), "end at 999"),
        (lambda: make_proposal("uniform", SCHEDULE, "sds", -1, 10), "from 0 on"),
        (lambda: make_proposal("uniform", SCHEDULE, "sds", 0.5, 10), "whole numbers"),  # type: ignore[arg-type]
        (lambda: make_proposal("adaptive", SCHEDULE, floor=0.0), "floor 0.0"),
        (lambda: taught().load_state_dict({"name": "weight"}), "proposal 'weight'"),
        (lambda: taught().load_state_dict(taught(bins=10).state_dict()), "10 bins"),
    ],
)
def test_mistakes_are_named(make: object, said: str) -> None:
    with pytest.raises(CarvError, match=said):
        make()  # type: ignore[operator]


def test_a_proposal_that_another_thread_teaches_is_sampled_with_one_table() -> None:
    class Taught(AdaptiveProposal):
        @property
        def _measured(self) -> Any:
            return None

        @_measured.setter
        def _measured(self, value: Any) -> None:
            """As where an update follows at once."""

    u = midpoints(64)
    for taught_at_once, plain in zip(
        Taught(SCHEDULE, "sds", 20, 980).sample(u), AdaptiveProposal(SCHEDULE, "sds", 20, 980).sample(u)
    ):
        assert torch.equal(taught_at_once, plain)
