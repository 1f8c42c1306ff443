"""The variance of a step's gradient, its two sources, and what it costs (arXiv 2605.21489, "variance accounting").

    Var(g) = tr Cov(g) = s_out^2 + V_in            ECM = Var_base cost_base / (Var cost)
    V_in = s_in^2 / (R K) for independent draws    RE  = Var_uniform / Var_method at equal (R, K)

g is the gradient of a step with respect to all parameters. s_out^2 is the variance of its mean given the upstream
sample, V_in its mean variance given that sample. Two gradients a, b of one upstream sample, whose draws are
independent, show both:

    V_in = E |a - b|^2 / 2                         s_out^2 = Cov(a, b) over upstream samples

Nothing is assumed of how strata or pairs tie the draws of one gradient together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from carv_3d.core.arguments import checked
from carv_3d.errors import CarvError

Number = TypeVar("Number", float, Tensor)


def gradients(
    output: Tensor, parameters: Sequence[Tensor], v: Tensor | None = None, retain_graph: bool = True
) -> list[Tensor]:
    """J^T v by parameter, J = d output / d parameters; zeros where a parameter is not reached.

    Args:
        output: with autograd; a scalar where `v` is not given.
        parameters: what J is of.
        v: of the shape of `output`, moved to its device and type.
        retain_graph: whether the graph is needed again.
    """
    v = None if v is None else v.to(output)
    grads = torch.autograd.grad(output, list(parameters), v, retain_graph=retain_graph, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters)]


def flat_gradient(output: Tensor, parameters: Sequence[Tensor], v: Tensor | None = None) -> Tensor:
    """J^T v as one vector (P,), float32 at least; the graph is kept.

    Args:
        output: with autograd; a scalar where `v` is not given.
        parameters: what J is of.
        v: of the shape of `output`.
    """
    parts = gradients(output, parameters, v)
    return torch.cat([g.reshape(-1).to(torch.promote_types(g.dtype, torch.float32)) for g in parts])


def half_square(difference: Tensor | Iterable[Tensor]) -> Tensor:
    """|a - b|^2 / 2 of a difference of two gradients, in parts or whole, as a float64 scalar.

    It is an unbiased sample of tr Cov of one of the two, given all that they share: V_in where that is the upstream
    sample, Var(g) where it is nothing.
    """
    parts = [difference] if isinstance(difference, Tensor) else difference
    return torch.stack([part.double().square().sum() for part in parts]).sum() / 2


@checked
def cross_covariance(a: Tensor, b: Tensor) -> float:
    """The trace of Cov(a, b), unbiased.

    It is s_out^2 where the two of a pair share their upstream sample alone, and may then come out below 0.

    Args:
        a: (N, ...), the first of N >= 2 independent pairs.
        b: (N, ...), the second.

    Raises:
        CarvError: fewer than two pairs, or other shapes.
    """
    return _covariance(a, b)


@checked
def total_variance(samples: Tensor) -> float:
    """The trace of Cov, unbiased, of N >= 2 independent vectors (N, ...)."""
    return _covariance(samples, samples)


@checked
def strata_variance(contributions: Tensor, strata: int) -> float:
    """The variance of a mean over `strata` strata with one contribution from each, unbiased.

    It is measured on contributions from finer strata. One from a coarse stratum is one from any of the fine strata in
    it. So E|g|^2 is the mean over these, and |E g|^2 the product of two independent means over them.

    Args:
        contributions: (2, S, ...), twice independently one from each of S strata.
        strata: how many, which divides S; 1 for a single contribution from anywhere.

    Raises:
        CarvError: shapes or numbers that do not fit.
    """
    if contributions.dim() < 2 or len(contributions) != 2 or strata < 1 or contributions.shape[1] % strata:
        raise CarvError(
            f"contributions of shape {tuple(contributions.shape)} do not divide into {strata} strata: they need "
            "(2, S, ...) with S a multiple of that."
        )
    x = contributions.detach().double().flatten(2) if contributions.dim() > 2 else contributions.double()[..., None]
    x = x.unflatten(1, (strata, -1))  # (2, strata, fine, P)
    squares, means = x.square().sum((1, 3)).mean(), x.mean(2)
    return float(squares - (means[0] * means[1]).sum()) / strata**2


def _covariance(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape or a.dim() < 1 or len(a) < 2:
        raise CarvError(f"a covariance needs two pairs of one shape at least, not {tuple(a.shape)}, {tuple(b.shape)}.")
    a, b = a.detach().double(), b.detach().double()
    return float(((a - a.mean(0)) * (b - b.mean(0))).sum()) / (len(a) - 1)


def ecm(variance_base: Number, cost_base: Number, variance: Number, cost: Number) -> Number:
    """Effective compute multiplier: the compute that the baseline needs for the same variance, over this one's.

    Args:
        variance_base: of a step of the baseline.
        cost_base: its seconds, or any other cost.
        variance: of a step of the other.
        cost: in the same unit.

    Raises:
        CarvError: of numbers, the other's variance or cost is 0; of tensors such a ratio is infinite or NaN.
    """
    return _ratio("ECM", variance_base * cost_base, variance * cost)


def re(variance_uniform: Number, variance: Number) -> Number:
    """Relative efficiency at equal (R, K).

    Args:
        variance_uniform: of a step with uniform independent draws.
        variance: of the other's.

    Raises:
        CarvError: of numbers, the other's variance is 0; of tensors such a ratio is infinite or NaN.
    """
    return _ratio("RE", variance_uniform, variance)


def _ratio(name: str, above: Number, below: Number) -> Number:
    if not isinstance(below, Tensor) and not below:
        parts = "variance times cost" if name == "ECM" else "variance"
        raise CarvError(f"{name} divides by the method's {parts}, which is 0; give a number above 0.")
    return above / below
