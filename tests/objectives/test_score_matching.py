"""The loss of a trained score against a slow reference, a known minimum, and what memory and NaN do to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from carv_3d.core.estimator import Draws
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.objectives.score_matching import ScoreMatching, squared_errors
from carv_3d.teachers.denoiser import Prediction

SHAPE = (1, 2, 2)
SCHEDULE = NoiseSchedule.scaled_linear()


class LinearScore(Prediction, nn.Module):
    """A z_t + b + c, whatever t; it remembers its calls."""

    def __init__(self, kind: str = "epsilon", dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.A = nn.Parameter(0.3 * torch.randn(4, 4, generator=g).to(dtype))
        self.b = nn.Parameter(0.3 * torch.randn(4, generator=g).to(dtype))
        self.schedule, self.prediction_type = SCHEDULE, kind
        self.calls: list[tuple[Tensor, ...]] = []

    def predict(self, z_t: Tensor, t: Tensor, *condition: Tensor) -> Tensor:
        self.calls.append((z_t, t, *condition))
        out = z_t.to(self.A.dtype).flatten(1) @ self.A + self.b + sum(c.to(self.A.dtype) for c in condition)
        return out.view_as(z_t)


def some(R: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Samples, and a condition of each."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(R, *SHAPE, generator=g), torch.randn(R, 4, generator=g)


def some_draws(R: int, K: int) -> Draws:
    g = torch.Generator().manual_seed(1)
    return Draws(torch.randint(0, 1000, (R, K), generator=g), torch.randn(R, K, *SHAPE, generator=g))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_gradient_is_that_of_the_mean_squared_error(kind: str) -> None:
    score, K = LinearScore(kind), 4
    (z, condition), draws = some(3), some_draws(3, K)
    by_draw = torch.randn(12, 4, generator=torch.Generator().manual_seed(5))  # another for each draw
    actual = ScoreMatching(score, K, max_batch=5).gradients(z, draws, (condition, by_draw), scale=8.0)
    assert [len(call[0]) for call in score.calls] == [4, 4, 4]  # 12 in batches of at most 5, of equal size
    total = torch.zeros(())
    for r in range(3):
        for k in range(K):
            t, eps = draws.t[r, k].reshape(1), draws.eps[r, k][None]
            abar = SCHEDULE.alphas_cumprod[t].view(1, 1, 1, 1)
            z_t = abar.sqrt() * z[r] + (1 - abar).sqrt() * eps
            target = eps if kind == "epsilon" else abar.sqrt() * eps - (1 - abar).sqrt() * z[r]
            prediction = score.predict(z_t, t, condition[r : r + 1], by_draw[4 * r + k][None])
            total = total + (prediction - target).square().mean() / (3 * K)
    expected = torch.autograd.grad(total, list(score.parameters()))
    actual.store()
    for p, e in zip(score.parameters(), expected):
        torch.testing.assert_close(p.grad, 8 * e, rtol=1e-4, atol=1e-5)
    assert actual.mean == pytest.approx(float(total.detach()), rel=1e-5)
    loss = actual.loss()
    assert float(loss.detach()) == pytest.approx(actual.mean)
    for g, e in zip(torch.autograd.grad(loss, list(score.parameters())), expected):
        torch.testing.assert_close(g, 8 * e, rtol=1e-4, atol=1e-5)
    assert bool(actual.finite.all())


def test_the_loss_is_unbiased_over_all_timesteps() -> None:
    # the best model of N(0, s^2): eps_hat = sigma z_t / v, v = alpha^2 s^2 + sigma^2; its loss at t is alpha^2 s^2 / v
    s, R = 0.7, 4000

    class Best(LinearScore):
        def predict(self, z_t: Tensor, t: Tensor, *condition: Tensor) -> Tensor:
            abar = SCHEDULE.alphas_cumprod[t]
            return ((1 - abar).sqrt() / (abar * s**2 + 1 - abar)).view(-1, 1, 1, 1) * z_t + 0 * self.b[0]

        def parameters(self, recurse: bool = True) -> Any:
            return iter([self.b])

    z = s * torch.randn(R, *SHAPE, generator=torch.Generator().manual_seed(0))
    for K, stratify, pairs in ((1, "none", False), (2, "render", False), (4, "global", True)):
        matching = ScoreMatching(Best(), K, stratify, pairs, max_batch=10**5)
        draws = matching.draw(z, torch.Generator().manual_seed(K))
        losses = matching.gradients(z, draws, ()).losses.view(R, K).mean(1) / 4
        abar = SCHEDULE.alphas_cumprod
        expected = float((abar * s**2 / (abar * s**2 + 1 - abar)).mean())
        assert abs(float(losses.mean()) - expected) < 4 * float(losses.std()) / R**0.5
        assert float(losses.std()) / R**0.5 < 0.05 * expected


def test_draws_lie_in_strata_and_pairs() -> None:
    matching = ScoreMatching(LinearScore(), 4, "render", antithetic=True, max_batch=100)
    z = some(50)[0]
    draws = matching.draw(z, torch.Generator().manual_seed(0))
    assert bool((draws.t[:, 0] == draws.t[:, 1]).all())
    assert bool((draws.t[:, 0] < 500).all())
    assert bool((draws.t[:, 2] >= 500).all())
    torch.testing.assert_close(draws.eps[:, 0], -draws.eps[:, 1])
    assert draws.weights is None or bool((draws.weights == 1).all())
    assert (int(draws.t.min()) < 40) & (int(draws.t.max()) > 960)
    assert ScoreMatching(LinearScore(), 3, antithetic=True).estimator.design.antithetic is False
    loose = ScoreMatching(LinearScore(), 4, "none").estimator
    assert loose.design.stratify == "none"
    assert (loose.proposal.min_step, loose.proposal.max_step) == (0, 999)


def test_a_batch_that_is_not_finite_is_left_out() -> None:
    z, condition = some(2)
    z[1] = float("inf")
    score = LinearScore()
    matching = ScoreMatching(score, 1, "none", max_batch=1)
    actual = matching.gradients(z, matching.draw(z, torch.Generator().manual_seed(0)), (condition,))
    assert actual.finite.tolist() == [True, False]
    assert float(actual.losses[1]) == 0
    actual.store()
    assert all(bool(torch.isfinite(p.grad).all()) for p in score.parameters() if p.grad is not None)


def test_the_error_is_summed_over_elements_and_at_least_float32() -> None:
    (z, condition), draws = some(3), some_draws(3, 1)
    t, eps = draws.t[:, 0], draws.eps[:, 0]
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        score = LinearScore(dtype=dtype)
        errors = squared_errors(score, z.to(dtype), t, eps.to(dtype), condition.to(dtype))
        assert errors.dtype == expected
        z_t = SCHEDULE.add_noise(z.to(dtype), eps.to(dtype), t)
        difference = score.predict(z_t, t, condition.to(dtype)).to(expected) - eps.to(dtype).to(expected)
        torch.testing.assert_close(errors, difference.square().sum((1, 2, 3)))


def test_memory_that_ran_out_once_is_remembered() -> None:
    class Small(LinearScore):
        def predict(self, z_t: Tensor, t: Tensor, *condition: Tensor) -> Tensor:
            tried.append(len(z_t))
            if len(z_t) > 3:
                raise RuntimeError("out of memory")
            return super().predict(z_t, t, *condition)

    tried: list[int] = []
    score = Small()
    matching = ScoreMatching(score, 4, max_batch=8)
    (z, condition), draws = some(2), some_draws(2, 4)
    first = matching.gradients(z, draws, (condition,))
    calls = len(score.calls)
    assert max(tried) > 3
    tried.clear()
    second = matching.gradients(z, draws, (condition,))
    assert len(score.calls) == 2 * calls
    assert max(tried) <= 3
    scaled = matching.gradients(z, draws, (condition,), scale=8.0)
    for a, b in zip(first.sums, scaled.sums):
        torch.testing.assert_close(8 * a, b)
    for a, b in zip(first.sums, second.sums):
        torch.testing.assert_close(a, b)


def test_ranks_share_the_strata() -> None:
    z, _ = some(2)
    both = [ScoreMatching(LinearScore(), 1, "global", rank=rank, world_size=2) for rank in (0, 1)]
    late = ScoreMatching(LinearScore(), 1, "global")
    late.join_ranks(1, 2)
    assert (late.estimator.options.rank, late.estimator.options.world_size) == (1, 2)
    for _ in range(3):
        draws = [m.draw(z, torch.Generator().manual_seed(m.estimator.options.rank)) for m in both]
        t = torch.cat([d.t for d in draws]).flatten().sort().values
        assert [int(x) // 250 for x in t] == [0, 1, 2, 3]
