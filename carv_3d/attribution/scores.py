"""Influence scores from features, each with its standard error over the draws.

A positive score says: training on this item lowered the query's loss. Features come in groups of independent draws,
queries (Q, H, d) and items (N, G, d), so a bilinear score is the mean of a two-way table s_hg = q_h A f_g, of variance

    Var = V_q / H + V_f / G + V_qf / (H G)

of which the mean squares of rows, columns and rest give an unbiased estimate. `items` may be memory-mapped: scores go
over it in chunks, and nothing but (Q, N) numbers and (d, d) matrices is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from carv_3d.attribution.store import release_pages
from carv_3d.core.arguments import checked, described, fits
from carv_3d.errors import CarvError, shown

CHUNK = 512  # items at a time
RELEASE_EVERY = 16  # chunks, after which the memory of mapped rows is given back
Rows = Any  # a tensor or a (memory-mapped) array


@dataclass
class Scores:
    """The scores of N items for Q queries.

    Attributes:
        values: (Q, N) float64.
        errors: (Q, N) float64, standard errors over draws; NaN where queries and items have one group alone.
    """

    values: Tensor
    errors: Tensor

    @checked
    def top(self, query: int, count: int, least: bool = False) -> list[int]:
        """The items with the highest scores for a query (`least`: the lowest), best first.

        Args:
            query: from 0 on.
            count: how many items.
            least: whether the lowest are asked for.

        Raises:
            CarvError: a query that there is not, or a count below 0.
        """
        if not 0 <= query < len(self.values) or count < 0:
            raise CarvError(
                f"query is {query} and count {count}; there are {len(self.values)} queries from 0 on, and a count is "
                "at least 0."
            )
        order = torch.argsort(self.values[query], descending=not least, stable=True)
        return order[:count].tolist()

    def moderated_errors(self, degrees: int = 1, prior: int = 8) -> Tensor:
        """(Q, N) errors drawn towards their root mean square over a query's items, for intervals.

        Two groups give a variance with one degree of freedom, under which an interval is far too short for every third
        item; here the mean over all items counts as `prior` more.

        Args:
            degrees: of freedom of each error, the number of groups less one.
            prior: of the mean.
        """
        mean = self.errors.square().mean(1, keepdim=True)
        return ((degrees * self.errors.square() + prior * mean) / (degrees + prior)).sqrt()


@checked
def bilinear(queries: Tensor, items: Rows) -> Scores:
    """`q A f`, the mean over groups, and its error.

    Args:
        queries: (Q, H, d), q A where A is not the identity.
        items: (N, G, d).

    Raises:
        CarvError: features that do not fit.
    """
    _check(queries, items)
    queries = queries.double()
    scores, done = _empty_scores(queries, items), 0
    for f in _chunks(items):
        mean, variance = mean_and_variance(torch.einsum("qhd,ngd->qnhg", queries, f))
        done = _put(scores, done, mean, variance.sqrt())
    return scores


@checked
def cosine(queries: Tensor, items: Rows, white: Callable[[Tensor], Tensor] | None = None) -> Scores:
    """The cosine between the mean gradients (the paper's score).

    Errors to first order, norms included: of s = q f / |q| |f| the part along q/|q| - s f/|f|, over groups.

    Args:
        queries: (Q, H, d).
        items: (N, G, d).
        white: what features (M, d) are put through first, if anything.

    Raises:
        CarvError: features that do not fit.
    """
    _check(queries, items)

    def through(x: Tensor) -> Tensor:
        return x if white is None else white(x.reshape(-1, x.shape[-1])).view(x.shape)

    q = through(queries.double())
    q_mean = q.mean(1)
    q_norm = q_mean.norm(dim=1).clamp_min(1e-300)
    scores, done = _empty_scores(queries, items), 0
    for f in map(through, _chunks(items)):
        f_mean = f.mean(1)
        f_norm = f_mean.norm(dim=1).clamp_min(1e-300)
        s = (q_mean @ f_mean.T) / q_norm[:, None] / f_norm
        toward = torch.einsum("qd,ngd->qng", q_mean, f) / q_norm[:, None, None]
        own = torch.einsum("nd,ngd->ng", f_mean, f) / f_norm[:, None]
        by_items = (toward - s[:, :, None] * own) / f_norm[:, None]
        toward = torch.einsum("nd,qhd->qnh", f_mean, q) / f_norm[:, None]
        own = torch.einsum("qd,qhd->qh", q_mean, q) / q_norm[:, None]
        by_queries = (toward - s[:, :, None] * own[:, None]) / q_norm[:, None, None]
        done = _put(scores, done, s, (_mean_variance(by_items) + _mean_variance(by_queries)).sqrt())
    return scores


def kernel(items: Rows) -> Tensor:
    """(d, d) float64 `1/N sum_i f_i f_i^T`, of the mean features of N items."""
    d = items.shape[-1]
    total = torch.zeros(d, d, dtype=torch.float64)
    for f in _chunks(items):
        whole = f.sum(1)
        total += whole.T @ whole
    return total / (items.shape[1] ** 2 * len(items))


@checked
def trak(queries: Tensor, items: Rows, ridge: float, gram: Tensor | None = None) -> Scores:
    """TRAK (arXiv 2303.14186) with one model: `q (K + ridge tr(K)/d I)^-1 f`, K the kernel of the items.

    On features of "mean-squared-l2-norm" and its like this is D-TRAK (arXiv 2311.00500). Errors take the kernel as
    given.

    Args:
        queries: (Q, H, d).
        items: (N, G, d).
        ridge: relative to the kernel's mean eigenvalue, see `choose_ridge`.
        gram: the kernel, if it is at hand.

    Raises:
        CarvError: a ridge that is not above 0, or a kernel that is not positive even so.
    """
    _check(queries, items, gram)
    gram = kernel(items) if gram is None else gram
    left = solve(gram, queries.double().reshape(-1, queries.shape[-1]), ridge).view(queries.shape)
    return bilinear(left, items)


@checked
def relatif(queries: Tensor, items: Rows, ridge: float, gram: Tensor | None = None) -> Scores:
    """l-RelatIF (arXiv 2003.11630): `trak` over the roots of the item's score for itself and of the query's."""
    _check(queries, items, gram)  # it is the cosine in the metric of the regularized inverse kernel
    factor = factorized(kernel(items) if gram is None else gram, ridge)
    return cosine(queries, items, lambda x: torch.linalg.solve_triangular(factor, x.T.to(factor), upper=False).T)


def solve(gram: Tensor, rows: Tensor, ridge: float) -> Tensor:
    """(M, d) rows times `(K + ridge tr(K)/d I)^-1`."""
    factor = factorized(gram, ridge)
    return torch.cholesky_solve(rows.T.to(factor), factor).T


def factorized(gram: Tensor, ridge: float) -> Tensor:
    """L (d, d), lower, of `K + ridge tr(K)/d I = L L^T`. Raises CarvError as `trak`."""
    if not 0 < ridge < math.inf:
        raise CarvError(
            f"ridge is {ridge}; it must be above 0 and finite (without it, noise in the draws is amplified at will)."
        )
    if not bool(gram.isfinite().all()):
        raise CarvError("the kernel is not finite: items have features that are NaN, infinite or beyond 1e150.")
    d = len(gram)
    scale = float(gram.diagonal().mean())
    if scale == 0:
        raise CarvError("the kernel holds zeros alone, as all features of the items are zero: make them again.")
    factor, failed = torch.linalg.cholesky_ex(gram + ridge * scale * torch.eye(d, dtype=gram.dtype))
    if not scale > 0 or int(failed):
        raise CarvError(f"the kernel is not positive at ridge {ridge}: take a larger one, or the plain kernel.")
    return factor


@checked
def choose_ridge(items: Rows, ridges: Sequence[float] | None = None, folds: int = 2, limit: int = 2048) -> float:
    """The ridge under which the kernel of some items describes the others best.

    Score: the Gaussian log likelihood of a fold's features under the regularized kernel of the rest, summed over
    folds. That is how well the inverse, which TRAK multiplies by, holds beyond the items it is made of; it asks for no
    retrained model.

    Args:
        items: (N, G, d).
        ridges: to choose from, relative to the kernel's mean eigenvalue; 1e-4 to 1e2 if None.
        folds: of the cross-validation.
        limit: how many items, spread over a larger set, are enough.

    Raises:
        CarvError: fewer than two items in a fold.
    """
    ridges = list(ridges) if ridges is not None else [10.0**e for e in np.arange(-4, 2.01, 0.5)]
    if not ridges or not all(fits(ridge, float) and 0 < ridge < math.inf for ridge in ridges):
        raise CarvError(f"ridges are {shown(ridges)}; they must be finite numbers above 0, one at least.")
    if folds < 2 or limit < 2 * folds:
        raise CarvError(f"folds is {folds} and limit {limit}; they must be 2 at least, and twice as many as the folds.")
    n = len(items)
    if n < 2 * folds:
        raise CarvError(f"choosing the ridge needs {2 * folds} items at least, and there are {n}: name a ridge.")
    picked = np.unique(np.linspace(0, n - 1, min(n, limit)).astype(int))
    f = torch.cat([c.mean(1) for c in _chunks(items, picked)])
    if not bool(f.isfinite().all()) or not bool(f.any()):
        raise CarvError("the features of the items are not finite, or all of them are zero: make them again.")
    totals = torch.zeros(len(ridges), dtype=torch.float64)
    for fold in range(folds):
        held = torch.arange(len(f)) % folds == fold
        rest, d = f[~held], f.shape[1]
        # through the smaller of the two Gram matrices; in the directions that the rest does not reach lies the ridge
        if len(rest) < d:
            values, sides = torch.linalg.eigh(rest @ rest.T / len(rest))
            kept = values > 1e-10 * values[-1]
            values = values[kept]
            vectors = rest.T @ sides[:, kept] / (len(rest) * values).sqrt()
        else:
            values, vectors = torch.linalg.eigh(rest.T @ rest / len(rest))
            values = values.clamp_min(1e-10 * float(values[-1]))
        scale = float(values.sum() / d)
        energy = (f[held] @ vectors).square().mean(0)
        outside, beyond = d - len(values), f[held].square().sum(1).mean() - energy.sum()
        for i, ridge in enumerate(ridges):
            eigen = values + ridge * scale
            totals[i] -= (eigen.log() + energy / eigen).sum() + outside * math.log(ridge * scale)
            totals[i] -= beyond.clamp_min(0.0) / (ridge * scale) if outside else 0.0
    return float(ridges[int(totals.argmax())])


def tracin(steps: Iterable[tuple[Tensor, Rows, float]]) -> Scores:
    """TracIn (arXiv 2002.08484): `sum_c eta_c q_c f_c` over checkpoints; (queries, items, learning rate) of each.

    Draws of different checkpoints are taken for independent: give their features different seeds.
    """
    total: Scores | None = None
    for step in steps:
        if not isinstance(step, Sequence) or len(step) != 3 or not fits(step[2], float) or not math.isfinite(step[2]):
            raise CarvError("each step of TracIn must be (queries, items, learning rate), the last a finite number.")
        queries, items, rate = step
        scores = bilinear(queries, items)
        if total is None:
            total = Scores(rate * scores.values, abs(rate) * scores.errors)
        elif total.values.shape != scores.values.shape:
            raise CarvError("the checkpoints have features of different queries or items; make them of the same.")
        else:
            total = Scores(total.values + rate * scores.values, torch.hypot(total.errors, rate * scores.errors))
    if total is None:
        raise CarvError("TracIn needs one checkpoint at least.")
    return total


def mean_and_variance(table: Tensor) -> tuple[Tensor, Tensor]:
    """(..., H, G) -> the mean over both, and an unbiased estimate of its variance (0 where that comes out below).

    Rows and columns are independent draws of a query and of an item. With one row (column) the variance is that over
    columns (rows), the other source left out; with one of both it is NaN.
    """
    H, G = table.shape[-2:]
    mean = table.mean((-1, -2))
    if H == 1 and G == 1:
        return mean, torch.full_like(mean, float("nan"))
    rows, columns = table.mean(-1), table.mean(-2)
    variance = _mean_variance(rows) + _mean_variance(columns)
    if H > 1 and G > 1:
        rest = table - rows[..., None] - columns[..., None, :] + mean[..., None, None]
        variance = variance - rest.square().sum((-1, -2)) / ((H - 1) * (G - 1) * H * G)
    return mean, variance.clamp_min(0.0)


def _mean_variance(x: Tensor) -> Tensor:
    """Unbiased variance of the mean over the last axis; 0 where there is one alone."""
    n = x.shape[-1]
    return x.var(-1) / n if n > 1 else torch.zeros(x.shape[:-1], dtype=x.dtype)


def _empty_scores(queries: Tensor, items: Rows) -> Scores:
    """Made at once: a list of small results between large ones that come and go keeps the heap from shrinking."""
    values, errors = (torch.empty(len(queries), len(items), dtype=torch.float64) for _ in range(2))
    return Scores(values, errors)


def _put(scores: Scores, begin: int, values: Tensor, errors: Tensor) -> int:
    """The scores of a chunk into their place; returns where the next one begins."""
    end = begin + values.shape[1]
    if not bool(values.isfinite().all()):
        item = begin + int((~values.isfinite()).any(0).nonzero()[0])
        raise CarvError(
            f"the scores of item {item} are not finite, so its features or a query's are not: make them again."
        )
    scores.values[:, begin:end], scores.errors[:, begin:end] = values, errors
    return end


def _chunks(items: Rows, picked: Any = None) -> Iterator[Tensor]:
    """(chunk, G, d) float64 of the items, or of those picked, in order."""
    for begin in range(0, len(items if picked is None else picked), CHUNK):
        part = items[begin : begin + CHUNK] if picked is None else items[picked[begin : begin + CHUNK]]
        yield part.double() if isinstance(part, Tensor) else torch.from_numpy(np.array(part, dtype=np.float64))
        if begin // CHUNK % RELEASE_EVERY == 0:
            release_pages(items)


def _check(queries: Tensor, items: Rows, gram: Tensor | None = None) -> None:
    mapped = isinstance(items, np.ndarray) and items.dtype.kind in "fiu"
    for name, value, due in (("queries", queries, ""), ("items", items, " or an array")):
        real = fits(value, Tensor) and not value.is_complex()
        if not real and not (mapped and name == "items"):
            raise CarvError(f"{name} are {described(value)}; they must be a torch tensor{due} of real numbers.")
    if queries.dim() != 3 or len(items.shape) != 3 or queries.shape[-1] != items.shape[-1]:
        raise CarvError(
            f"queries have shape {tuple(queries.shape)} and items {tuple(items.shape)}; they need (Q, H, d) and "
            "(N, G, d) with the same d, from the same projection."
        )
    if 0 in queries.shape or 0 in items.shape:
        raise CarvError(f"queries {tuple(queries.shape)} and items {tuple(items.shape)} hold no feature: give some.")
    if gram is not None and (not fits(gram, Tensor) or gram.shape != (queries.shape[-1],) * 2):
        raise CarvError(f"gram must be a kernel of the items, a tensor ({queries.shape[-1]}, {queries.shape[-1]}).")
