"""Distances between sets against slow references, closed forms and what sampling theory says."""

import itertools

import pytest
import torch

from carv_3d.errors import CarvError
from carv_3d.evaluation.distances import (
    frechet_distance,
    kernel_distance,
    polynomial_kernel,
    resampled_kernel_distances,
    wasserstein,
)
from carv_3d.stats import bootstrap


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carv_3d.stats.bootstrap.RESAMPLES", 300)


def normal(n, d, seed, scale=1.0, shift=0.0):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scale * x + shift


def slow_mmd2(x, y):
    def k(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    def within(z):
        return sum(k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j) / (len(z) * (len(z) - 1))

    return within(x) + within(y) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


def test_kernel_distance_is_the_double_loop() -> None:
    x, y = normal(7, 3, 0), normal(9, 3, 1, 1.5, 0.3)
    assert kernel_distance(x, y).value == pytest.approx(slow_mmd2(x, y), rel=1e-12)
    assert kernel_distance(x.float(), y.float()).value == pytest.approx(slow_mmd2(x, y), rel=1e-5)


def test_kernel_distance_by_hand() -> None:
    # d = 1; k(0, .) = 1, k(1, 1) = 8: within x (0, 0): 1; within y (1, 1): 8; across: 1
    x, y = torch.zeros(2, 1), torch.ones(2, 1)
    assert kernel_distance(x, y).value == pytest.approx(1 + 8 - 2)
    assert polynomial_kernel(torch.tensor([[2.0, 4.0]]), torch.tensor([[1.0, 0.0]])).item() == 8.0  # (2/2 + 1)^3


def test_kernel_distance_grows_with_what_lies_between() -> None:
    x = normal(100, 4, 0)
    near, far = (kernel_distance(x, normal(100, 4, 1, shift=shift)) for shift in (0.5, 1.0))
    assert 0 < near.low < near.value < near.high < far.low < far.value


def test_kernel_distance_has_mean_zero_and_a_covering_interval_where_nothing_differs() -> None:
    distances = [kernel_distance(normal(30, 4, 2 * s), normal(40, 4, 2 * s + 1)) for s in range(150)]
    values = torch.tensor([f.value for f in distances])
    assert abs(values.mean()) < 4 * values.std() / len(distances) ** 0.5
    assert values.min() < 0  # unbiased, so on both sides
    assert sum(f.low <= 0 <= f.high for f in distances) >= 0.93 * len(distances)


def test_sets_that_share_their_prompts_are_apart_by_nothing_when_paired() -> None:
    # row i of both sets has the mean of prompt i: x_i and y_i are the same in distribution, and depend on each other
    unbiased, naive = [], []
    for s in range(150):
        prompts = normal(30, 4, 3 * s, scale=2.0)
        x, y = prompts + normal(30, 4, 3 * s + 1), prompts + normal(30, 4, 3 * s + 2)
        unbiased.append(kernel_distance(x, y, paired=True))
        naive.append(kernel_distance(x, y).value)
    values, naive_values = torch.tensor([f.value for f in unbiased]), torch.tensor(naive)
    assert abs(values.mean()) < 4 * values.std() / len(unbiased) ** 0.5
    assert naive_values.mean() < -4 * naive_values.std() / len(unbiased) ** 0.5
    assert sum(f.low <= 0 <= f.high for f in unbiased) >= 0.85 * len(unbiased)
    with pytest.raises(CarvError, match="cannot be paired"):
        kernel_distance(x, y[:-1], paired=True)


def test_the_interval_covers_the_true_distance() -> None:
    def moment(a, b):  # E k(x, y) with x ~ N(a, 1), y ~ N(b, 1), d = 1: E (xy + 1)^3
        m = [(1, a, a * a + 1, a**3 + 3 * a), (1, b, b * b + 1, b**3 + 3 * b)]
        return sum(c * m[0][i] * m[1][i] for i, c in enumerate((1, 3, 3, 1)))

    a, b, n, trials = 0.0, 1.0, 60, 150
    truth = moment(a, a) + moment(b, b) - 2 * moment(a, b)
    covered = 0
    for s in range(trials):
        distance = kernel_distance(normal(n, 1, 2 * s, shift=a), normal(n, 1, 2 * s + 1, shift=b))
        covered += distance.low <= truth <= distance.high
    assert 0.86 * trials <= covered <= 0.99 * trials  # 95 % nominal; skewed, so a little below at n = 60


def test_copies_in_a_resample_do_not_lift_it() -> None:
    x, y = normal(50, 3, 0), normal(40, 3, 1)
    value, *rest = resampled_kernel_distances(x, y)
    rest = torch.stack(rest)
    error = float(rest.std()) / len(rest) ** 0.5
    assert abs(float(rest.mean() - value)) < 4 * error
    lift = sum(float(polynomial_kernel(z, z).trace()) / len(z) ** 2 for z in (x, y))  # of copies taken for pairs
    assert lift > 20 * error


def test_the_sides_of_a_resample_are_drawn_apart_unless_they_are_paired() -> None:
    x, y = normal(9, 3, 0), normal(9, 3, 1)
    kxx, kyy, kxy = polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y)

    def between(a, b, kernel):  # the mean over pairs of different items
        return sum(kernel[i, j] for i in a for j in b if i != j) / sum(i != j for i in a for j in b)

    for resample in (1, 7):
        a, b = (bootstrap.picks(9, bootstrap.SEED + side)[resample].tolist() for side in (0, 1))
        apart = between(a, a, kxx) + between(b, b, kyy) - 2 * sum(kxy[i, j] for i in a for j in b) / 81
        together = between(a, a, kxx) + between(a, a, kyy) - 2 * between(a, a, kxy)
        assert float(resampled_kernel_distances(x, y)[resample]) == pytest.approx(float(apart))
        assert float(resampled_kernel_distances(x, y, paired=True)[resample]) == pytest.approx(float(together))


def test_frechet_distance_is_the_closed_form_of_the_fits() -> None:
    import numpy as np
    from scipy.linalg import sqrtm

    x, y = normal(50, 5, 0) @ normal(5, 5, 7), normal(40, 5, 1, 2.0, 0.5)
    (a, b), (s, t) = [z.mean(0).numpy() for z in (x, y)], [np.cov(z.numpy().T) for z in (x, y)]
    expected = np.sum((a - b) ** 2) + np.trace(s + t - 2 * np.real(sqrtm(s @ t)))
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_known_fits_with_fewer_samples_than_dimensions() -> None:
    # a translation keeps the covariance: exactly |shift|^2; a scale c adds (c - 1)^2 tr S
    x = normal(6, 20, 0)
    shift = normal(1, 20, 1)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-10)
    assert frechet_distance(x, x + shift) == pytest.approx(float(shift.square().sum()), rel=1e-9)
    centred = x - x.mean(0)
    spread = float(centred.square().sum() / 5)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * spread, rel=1e-9)


@pytest.mark.parametrize("p", [1, 2])
def test_wasserstein_is_the_best_of_all_permutations(p) -> None:
    x, y = normal(6, 3, 0), normal(6, 3, 1, 2.0)
    costs = [
        sum(float((a - y[j]).norm()) ** p for a, j in zip(x, order)) / 6 for order in itertools.permutations(range(6))
    ]
    assert wasserstein(x, y, p) == pytest.approx(min(costs) ** (1 / p), rel=1e-12)


@pytest.mark.parametrize("p", [1, 2])
def test_wasserstein_of_a_translation_is_its_length_and_order_does_not_matter(p) -> None:
    x = normal(40, 4, 0).view(40, 1, 2, 2)
    shift = torch.tensor([[[1.0, 2.0], [2.0, 0.0]]], dtype=torch.float64)
    assert wasserstein(x, (x + shift).flip(0), p) == pytest.approx(3.0, rel=1e-12)
    assert wasserstein(x, x.flip(0), p) == 0.0


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(CarvError, match="two rows at least"):
        kernel_distance(torch.zeros(1, 3), torch.zeros(5, 3))
    with pytest.raises(CarvError, match="same length"):
        frechet_distance(torch.zeros(4, 3), torch.zeros(5, 2))
    with pytest.raises(CarvError, match="one size"):
        wasserstein(torch.zeros(4, 3), torch.zeros(5, 3))
    with pytest.raises(CarvError, match="p is 3"):
        wasserstein(torch.zeros(4, 3), torch.zeros(4, 3), 3)
