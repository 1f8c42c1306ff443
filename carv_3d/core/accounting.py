"""Variance and compute, measured: tr Cov of the parameter gradient, its two sources, and what it costs.

    Var(g) = s_out^2 / R + s_in^2 / (R K)                     ECM = Var_base cost_base / (Var cost)
                                                              RE  = Var_uniform / Var_method, equal (R, K)

(arXiv 2605.21489, "variance accounting".) s_out^2 is the variance of the conditional mean over upstream
samples, s_in^2 the mean conditional variance over draws. Under strata or antithetic pairs the draws of a
render are not independent: the unit is then the whole group, see `Design.unit`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from carv_3d.core.costs import CostMeter
from carv_3d.errors import CarvError

__all__ = [
    "CostMeter",
    "Interval",
    "VarianceSplit",
    "Welford",
    "ecm",
    "ecm_interval",
    "group_draws",
    "parameter_gradients",
    "re",
    "re_interval",
    "total_variance",
    "variance_split",
]


class Welford:
    """Running mean and tr Cov of vectors, in float64, without keeping them (Welford's algorithm).

    `mean` has the shape of what comes in; `variance` is the unbiased tr Cov of one vector.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.sum_squares = 0.0

    def update(self, x: Tensor | Iterable[Tensor]) -> None:
        """One vector: a tensor of any shape, or tensors (the gradients of several parameters)."""
        x = _flat(x)
        if self.count == 0:
            self.mean = torch.zeros_like(x)
        if x.shape != self.mean.shape:
            raise CarvError(f"Welford got {tuple(x.shape)} after {tuple(self.mean.shape)}; keep one shape.")
        self.count += 1
        before = x - self.mean
        self.mean = self.mean + before / self.count
        self.sum_squares += float((before * (x - self.mean)).sum())

    def merge(self, other: Welford) -> None:
        """As if all that `other` saw had come in here."""
        if other.count == 0:
            return
        if self.count == 0:
            self.count, self.mean, self.sum_squares = other.count, other.mean.clone(), other.sum_squares
            return
        n = self.count + other.count
        apart = other.mean.to(self.mean) - self.mean
        self.sum_squares += other.sum_squares + float(apart.square().sum()) * self.count * other.count / n
        self.mean = self.mean + apart * (other.count / n)
        self.count = n

    @property
    def variance(self) -> float:
        """Unbiased tr Cov. Raises CarvError with fewer than two vectors."""
        if self.count < 2:
            raise CarvError(f"a variance needs two samples at least, and there is {self.count}.")
        return self.sum_squares / (self.count - 1)


def total_variance(gradients: Tensor) -> float:
    """Unbiased tr Cov of the rows: (N, ...) -> a number."""
    if len(gradients) < 2:
        raise CarvError(f"a variance needs two samples at least, and there is {len(gradients)}.")
    return float(gradients.detach().double().flatten(1).var(0).sum())


@dataclass(frozen=True)
class VarianceSplit:
    """s_out2, s_in2: per upstream sample, per unit of draws. Unbiased, so s_out2 may come out below 0.

    upstream: how many upstream samples were seen.
    """

    s_out2: float
    s_in2: float
    upstream: int

    def variance(self, R: int, units: int) -> float:
        """Var(g) for R upstream samples with that many units each (K draws, K/2 pairs, or 1 group)."""
        return self.s_out2 / R + self.s_in2 / (R * units)

    @property
    def upstream_share(self) -> float:
        """s_out2 / (s_out2 + s_in2), within [0, 1]."""
        out = max(self.s_out2, 0.0)
        return out / (out + self.s_in2) if out + self.s_in2 > 0 else 0.0


def variance_split(gradients: Iterable[Tensor]) -> VarianceSplit:
    """One-way analysis of variance over parameter gradients.

    gradients: for each upstream sample, (M, ...) gradients of M units, M >= 2 and the same for all; a unit
        is a draw where draws are independent, else a group (a pair; under strata, K draws, drawn M times
        over). A tensor (R, M, ...) will do; a generator keeps one upstream sample in memory at a time.
    Raises CarvError with fewer than two upstream samples or units.
    """
    between, within, units = Welford(), 0.0, 0
    for rows in gradients:
        if len(rows) < 2 or (units and len(rows) != units):
            raise CarvError(
                f"an upstream sample came with {len(rows)} units; the split needs 2 at least, the same number for each."
            )
        units = len(rows)
        within += total_variance(rows)
        between.update(rows.detach().double().mean(0))
    if between.count < 2:
        raise CarvError(f"the split needs two upstream samples at least, and there is {between.count}.")
    s_in2 = within / between.count
    return VarianceSplit(between.variance - s_in2 / units, s_in2, between.count)


def group_draws(draws: Tensor, unit: int) -> Tensor:
    """(R, K, ...) -> (R, K / unit, ...), the mean of each unit of neighbouring draws (`Design.unit`)."""
    if draws.shape[1] % unit:
        raise CarvError(f"{draws.shape[1]} draws cannot be laid out in units of {unit}.")
    return draws.unflatten(1, (draws.shape[1] // unit, unit)).mean(2)


def parameter_gradients(latents: Tensor, parameters: Sequence[Tensor], cotangents: Tensor) -> Tensor:
    """J_r^T v_rm for each render and unit, by R M backward passes over one retained graph.

    latents: (R, ...), with autograd. cotangents: (R, M, ...), such as group_draws(weights * residual).
    Returns (R, M, P), P the number of parameters; what does not reach a parameter is 0. The mean over both
    is the gradient of the estimator's loss.
    """
    R, M = cotangents.shape[:2]
    out = []
    for r in range(R):
        for m in range(M):
            v = torch.zeros_like(latents)
            v[r] = cotangents[r, m].to(v)
            grads = torch.autograd.grad(latents, parameters, v, retain_graph=True, allow_unused=True)
            whole = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters)]
            out.append(torch.cat([g.reshape(-1) for g in whole]))
    return torch.stack(out).unflatten(0, (R, M))


def ecm(variance_base: float, cost_base: float, variance: float, cost: float) -> float:
    """Effective compute multiplier: how much dearer the baseline is at equal variance. Above 1 is a gain."""
    return (variance_base * cost_base) / (variance * cost)


def re(variance_uniform: float, variance: float) -> float:
    """Relative efficiency at equal (R, K). Above 1 is a gain."""
    return variance_uniform / variance


@dataclass(frozen=True)
class Interval:
    """A measured value with the ends of its bootstrap interval."""

    value: float
    low: float
    high: float


def ecm_interval(
    base: Tensor,
    cost_base: float | Tensor,
    method: Tensor,
    cost: float | Tensor,
    level: float = 0.95,
    resamples: int = 2000,
    generator: torch.Generator | None = None,
) -> Interval:
    """ECM with its bootstrap interval.

    base, method: (N, ...), (M, ...) gradients of repeated steps, independent of each other.
    cost_base, cost: seconds (or UNet rows) of a step; a tensor (N,), (M,) of measured ones is resampled
        with the gradients.
    generator: of the resampling, on the CPU.
    """
    first = _bootstrap(base, cost_base, resamples, generator)
    second = _bootstrap(method, cost, resamples, generator)
    value = ecm(total_variance(base), _mean(cost_base), total_variance(method), _mean(cost))
    ends = torch.quantile(first / second, torch.tensor([(1 - level) / 2, (1 + level) / 2]).double())
    return Interval(value, float(ends[0]), float(ends[1]))


def re_interval(
    uniform: Tensor,
    method: Tensor,
    level: float = 0.95,
    resamples: int = 2000,
    generator: torch.Generator | None = None,
) -> Interval:
    """RE with its bootstrap interval, see `ecm_interval`."""
    return ecm_interval(uniform, 1.0, method, 1.0, level, resamples, generator)


def _bootstrap(gradients: Tensor, cost: float | Tensor, resamples: int, generator: torch.Generator | None) -> Tensor:
    """(resamples,) variance times mean cost, from the Gram matrix of the centred gradients alone."""
    x = gradients.detach().double().flatten(1)
    n = len(x)
    if n < 2:
        raise CarvError(f"a variance needs two samples at least, and there is {n}.")
    x = x - x.mean(0)
    gram = (x @ x.T).cpu()
    picked = torch.randint(n, (resamples, n), generator=generator)
    counts = torch.zeros(resamples, n, dtype=torch.float64).scatter_add_(
        1, picked, torch.ones(resamples, n, dtype=torch.float64)
    )
    squares = counts @ gram.diagonal() - ((counts @ gram) * counts).sum(1) / n
    variance = squares / (n - 1) * n / (n - 1)  # a resample repeats samples, which costs it a factor 1 - 1/n
    if not isinstance(cost, Tensor):
        return variance * float(cost)
    if cost.shape != (n,):
        raise CarvError(f"the costs have shape {tuple(cost.shape)}; with {n} gradients they need ({n},).")
    return variance * (counts @ cost.detach().double().cpu()) / n


def _mean(cost: float | Tensor) -> float:
    return float(cost.double().mean()) if isinstance(cost, Tensor) else float(cost)


def _flat(x: Any) -> Tensor:
    if isinstance(x, Tensor):
        return x.detach().double()
    return torch.cat([part.detach().double().reshape(-1) for part in x])
