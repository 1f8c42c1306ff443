"""The two sources of a gradient's variance, from a few steps in a row with more draws than usual: a burst.

Such a step draws twice, independently, from S strata. Let x_c and x'_c be the two contributions from stratum c, and
a, b = J^T mean_c x_c, J^T mean_c x'_c, with J^T through encoder and renderer. Then, of the step's gradient,

    s_out^2 = E <a_i - a_(i+1), b_i - b_(i+1)> / 2          over measured steps in a row,
    V_in(S) = E |a - b|^2 / 2,
    V_in(k) = E |J^T d_k|^2,   d_k = 1/sqrt(2 S k) sum_c ± (x_c - x'_c')      for k < S strata, c' at random in c's.

One backward for each k, and for a and b.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from carv_3d.core.estimator import Estimate
from carv_3d.core.reduction import per_draw
from carv_3d.core.variance import flat_gradient, half_square

STRATA = 8  # S above; a measured step takes 16 draws per render (32 in pairs)
LEVELS = (1, 2, 4, STRATA)


class BurstVariances:
    """s_out^2 and V_in(k) of one render's gradient, as means over bursts, of which the newer count for more.

    In the mean the n-th burst counts n times: a scene changes with its age.

    Attributes:
        bursts: seen so far.
        out2: s_out^2, which may come out below 0.
        in2: V_in(k) at each of `levels`.
    """

    def __init__(self, group_size: int, stratified: bool, seed: int) -> None:
        """group_size: 2 for antithetic pairs. stratified: False for independent groups, whose V_in falls as 1/k."""
        self.group_size = group_size
        self.levels = LEVELS if stratified else LEVELS[-1:]
        self.bursts = 0
        self.out2, self.in2 = 0.0, [0.0] * len(self.levels)
        self._generator = torch.Generator().manual_seed(seed)
        self.begin()

    def begin(self) -> None:
        """A burst begins."""
        self._outs: list[float] = []
        self._ins: list[list[float]] = []
        self._last: Tensor | None = None  # a and b of the measured step before, (2, P)

    def add(self, latents: Tensor, estimate: Estimate) -> None:
        """A measured step, before its backward: two groups of `STRATA` draws (or pairs) for each render."""
        parameters = leaves(latents)
        x = per_draw(estimate.weights, estimate.residual) * estimate.residual
        x = x.unflatten(1, (2, STRATA, self.group_size)).mean(3)  # (R, 2, S, ...)
        squares = [
            flat_gradient(latents, parameters, difference(x, k, self._generator)).double().square().sum()
            for k in self.levels[:-1]
        ]
        halves = torch.stack([flat_gradient(latents, parameters, x[:, i].mean(1) / len(x)) for i in range(2)])
        squares.append(half_square(halves[0] - halves[1]))
        if self._last is not None and self._last.shape == halves.shape:
            apart = (halves - self._last.to(halves)).double()
            self._outs.append(float((apart[0] * apart[1]).sum()) / 2)
        self._last = halves
        self._ins.append(torch.stack(squares).tolist())

    def end(self, R: int) -> bool:
        """The burst, of steps with R renders, has ended; False where it says nothing, since not all was finite."""
        outs, ins = (torch.tensor(values, dtype=torch.float64) for values in (self._outs, self._ins))
        self._last = None
        if not len(outs) or not bool(torch.isfinite(outs).all() & torch.isfinite(ins).all()):
            return False
        self.bursts += 1
        part = 2 / (self.bursts + 1)
        self.out2 += part * (R * float(outs.mean()) - self.out2)
        self.in2 = [old + part * (R * float(new) - old) for old, new in zip(self.in2, ins.mean(0))]
        return True

    def inner(self, K: int) -> float:
        """V_in of one render with K draws. Beyond the finest strata it falls as 1/K; strata do at least as well."""
        k = K // self.group_size
        level = max((n for n in self.levels if n <= k), default=self.levels[0])
        return self.in2[self.levels.index(level)] * level / k

    @property
    def outer(self) -> float:
        """s_out^2 of one render, not below 0."""
        return max(self.out2, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers, of a burst that has not ended too."""
        return {
            "bursts": self.bursts,
            "out2": self.out2,
            "in2": list(self.in2),
            "outs": list(self._outs),
            "ins": [list(row) for row in self._ins],
            "last": self._last,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back `state_dict`."""
        self.bursts, self.out2, self.in2 = state["bursts"], state["out2"], list(state["in2"])
        self._outs, self._ins = list(state["outs"]), [list(row) for row in state["ins"]]
        self._last = state["last"]  # on the CPU if need be: `add` moves it
        self._generator.set_state(state["generator"].cpu())


def difference(x: Tensor, k: int, generator: torch.Generator | None = None) -> Tensor:
    """A cotangent (R, ...) for V_in(k): its pullback's expected square is the variance of R renders' mean, given them.

    Group c of the first half is held against c' of the second, c' uniform on c's coarse stratum, so the two are as two
    independent draws from that. With a random sign for each, the differences' cross terms vanish in expectation.

    Args:
        x: (R, 2, S, ...), two independent groups of contributions, one from each of S strata.
        k: strata whose variance is asked for; it divides S.
        generator: of shifts and signs.
    """
    R, _, S = x.shape[:3]
    fine = S // k
    shift = int(torch.randint(fine, (), generator=generator))
    first, second = x[:, 0].unflatten(1, (k, fine)), x[:, 1].unflatten(1, (k, fine)).roll(shift, 2)
    signs = torch.randint(2, (R, k, fine), generator=generator).to(x) * 2 - 1
    d = per_draw(signs, first) * (first - second)
    return d.sum((1, 2)) / ((2 * S * k) ** 0.5 * R)


def leaves(root: Tensor) -> list[Tensor]:
    """The leaves of a tensor's graph that require a gradient, in the order in which a walk finds them."""
    out: list[Tensor] = []
    seen: set[Any] = set()
    todo: list[Any] = [root.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            out.append(node.variable)
        todo.extend(following for following, _ in node.next_functions)
    return out if root.grad_fn is not None else [root]
