"""How far a set of images is from another, on features or on the samples themselves, with what sampling alone gives.

Features are those of the classifier (`carv_3d.tiny.classifier.Classifier.features`), not of Inception: none of these
figures is an FID or a KID, and none compares with published ones.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.stats.bootstrap import SEED, Interval, counts, interval


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """`(x·y / d + 1)^3` (arXiv 1801.01401, section 4): x (m, d), y (n, d) -> (m, n) float64."""
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def kernel_distance(x: Tensor, y: Tensor, paired: bool = False) -> Interval:
    """The unbiased squared MMD under `polynomial_kernel` (arXiv 1801.01401, equation 4), with a bootstrap interval.

        1/(m(m-1)) sum_{i != j} k(x_i, x_j) + 1/(n(n-1)) sum_{i != j} k(y_i, y_j) - 2/(mn) sum_{i,j} k(x_i, y_j)

    It is what the kernel Inception distance is on Inception's features. It is 0 in expectation for sets from one
    distribution, so it may well be negative. Images are resampled with replacement, the two sets apart. Two copies of
    one image would count the diagonal that the estimate leaves out and lift every resample: each mean is over the
    pairs of different images that the resample holds.

    Args:
        x: (m, d) features of one set of images, m >= 2.
        y: (n, d) features of the other, n >= 2.
        paired: whether row i of both sets was made for one prompt (or from one noise). The terms k(x_i, y_i) would
            pull the estimate below 0 by 2/n of what prompts differ by. They are left out, and pairs are resampled
            together.

    Raises:
        CarvError: fewer than two rows a side, or rows of different lengths.
    """
    return interval(resampled_kernel_distances(x, y, paired), min(len(x), len(y)))


def resampled_kernel_distances(x: Tensor, y: Tensor, paired: bool = False) -> Tensor:
    """(1 + RESAMPLES,) float64: the value of `kernel_distance`, then that of every resample."""
    _check(x, y)
    if paired and len(x) != len(y):
        raise CarvError(f"{len(x)} and {len(y)} rows cannot be paired: row i of both must belong together.")
    kxx, kyy, kxy = polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y)
    m, n = kxy.shape
    a = counts(m).to(kxy.device)
    if paired:
        return _pairs(a, kxx) + _pairs(a, kyy) - 2 * _pairs(a, kxy)
    b = counts(n, SEED + 1).to(kxy.device)
    return _pairs(a, kxx) + _pairs(b, kyy) - 2 * ((a @ kxy) * b).sum(1) / (m * n)


def _pairs(counts: Tensor, kernel: Tensor) -> Tensor:
    """The mean of `kernel` (n, n) over pairs of different rows, drawn `counts` (B, n) times each -> (B,)."""
    n = counts.shape[1]
    off = kernel - torch.diag(kernel.diagonal())
    return ((counts @ off) * counts).sum(1) / (n * n - counts.square().sum(1))


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """The Fréchet distance between the Gaussians fitted to x (m, d) and y (n, d), squared as is the custom.

        |mu_x - mu_y|^2 + tr S_x + tr S_y - 2 tr (S_x S_y)^{1/2}

    in float64, S the unbiased covariances. With S = R^T R, tr (S_x S_y)^{1/2} is the sum of the singular values of
    R_x R_y^T, so no root of a matrix is taken and nothing is added to a diagonal: it holds for fewer rows than
    dimensions as well. The fit makes it too large at small n: compare it with that of two sets of real images of the
    same n. Raises as `kernel_distance`.
    """
    _check(x, y)
    (mu_x, r_x), (mu_y, r_y) = _fit(x), _fit(y)
    cross = torch.linalg.svdvals(r_x @ r_y.T).sum()
    return float((mu_x - mu_y).square().sum() + r_x.square().sum() + r_y.square().sum() - 2 * cross)


def _fit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,), and R (min(n, d), d) with R^T R the unbiased covariance."""
    x = x.double()
    centred = (x - x.mean(0)) / (len(x) - 1) ** 0.5
    return x.mean(0), torch.linalg.qr(centred, mode="r").R


def wasserstein(x: Tensor, y: Tensor, p: int = 2) -> float:
    """The exact p-Wasserstein distance between two equally large samples, `min_s (mean |x_i - y_s(i)|^p)^{1/p}`.

    x, y: (n, ...), the rest flattened; Euclidean distances, by optimal assignment in float64 (O(n^3): n to a few
    thousand). Between two samples of one distribution it is not 0: state that floor next to it. Raises CarvError.
    """
    if x.shape != y.shape or len(x) < 1:
        raise CarvError(f"samples of {tuple(x.shape)} and {tuple(y.shape)}: exact transport takes two of one size.")
    if p not in (1, 2):
        raise CarvError(f"p is {p!r}; it must be 1 or 2.")
    from scipy.optimize import linear_sum_assignment

    flat = [a.detach().double().cpu().flatten(1) for a in (x, y)]
    cost = torch.cdist(flat[0], flat[1], compute_mode="donot_use_mm_for_euclid_dist").pow(p).numpy()
    rows, columns = linear_sum_assignment(cost)
    return float(np.mean(cost[rows, columns]) ** (1 / p))


def _check(x: Tensor, y: Tensor) -> None:
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise CarvError(
            f"features of {tuple(x.shape)} and {tuple(y.shape)}: both need two rows at least, of the same length."
        )
