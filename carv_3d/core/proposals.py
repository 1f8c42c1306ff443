"""Timestep proposals q(t): where timesteps are drawn, and the p/q that keeps the objective the same.

p is uniform on the integers [min_step, max_step] (arXiv 2605.21489, "importance sampling"); with a
`ContinuousSchedule` on the real numbers between, where q is constant from one integer to the next. A proposal turns
uniform numbers into timesteps by its inverse CDF, so that it goes with every design of the u.
"""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from carv_3d.core.designs import real_dtype
from carv_3d.core.kinds import is_finite
from carv_3d.core.options import Proposal
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError, shown

PROPOSALS = get_args(Proposal)
LEARNING = ("bins", "floor", "decay", "prior")  # what the adaptive proposal takes


class Measure(NamedTuple):
    """A density over timesteps with its running sum, and where in it a range of timesteps lies.

    density: (n,), of the timesteps from `offset` on, or of the intervals that begin there.
    cumulative: (n + 1,), the sum of density[:i].
    first, last: `cumulative` at both ends of the range. total: the sum of the density over the range.
    """

    density: Tensor
    cumulative: Tensor
    offset: int
    first: float
    last: float
    total: Tensor


class TimestepProposal:
    """Base: timesteps of [min_step, max_step] by the inverse CDF of a density.

    The range has this one owner; the options say where it begins. A subclass gives `_measure`.
    """

    name = ""
    adapts = False

    def __init__(
        self,
        schedule: NoiseSchedule,
        weighting: str | Tensor = "sds",
        min_step: int = 0,
        max_step: int | None = None,
        **own: Any,
    ) -> None:
        """Arguments as of `make_proposal`; `own` is what the kind of proposal takes besides."""
        self.num_train_timesteps, self.continuous = schedule.num_train_timesteps, schedule.continuous
        if isinstance(weighting, Tensor) and (weighting.is_complex() or weighting.layout != torch.strided):
            raise CarvError("weights are w(t) of each timestep: they must be a dense tensor of real numbers.")
        self.weights = schedule.weights(weighting).to(real_dtype(schedule.device))
        self._table = self.weights.cpu()  # so that a range that moves waits for no device
        self.min_step, self.max_step = -1, -1
        self.set_range(min_step, self.num_train_timesteps - 1 if max_step is None else max_step)
        self._build(**own)

    def _build(self) -> None:
        """Make what is made once."""

    def set_range(self, min_step: int, max_step: int) -> None:
        """From now on p is uniform on the integers min_step .. max_step.

        Args:
            min_step: the smallest timestep.
            max_step: the largest, included.

        Raises:
            CarvError: the range is empty or leaves the schedule.
        """
        if (min_step, max_step) == (self.min_step, self.max_step):
            return
        check_range(min_step, max_step, self.num_train_timesteps)
        if self.continuous and min_step == max_step:
            raise CarvError(f"min_step and max_step are {min_step}; real timesteps need max_step above min_step.")
        self.min_step, self.max_step = int(min_step), int(max_step)
        self._measured: Measure | None = None

    def sample(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps by the inverse CDF: the one t with CDF(t - 1) <= u < CDF(t).

        That is exact for this discrete distribution, also where a stratum of u straddles two timesteps; for real
        timesteps CDF(t) = u.

        Args:
            u: in [0, 1), of any shape.

        Returns:
            t, integers (float32 for real timesteps), and p/q in the tables' dtype, both of u's shape.
        """
        m = self._in_range()
        mass = m.first + u.to(m.cumulative.dtype) * (m.last - m.first)
        mass = mass.clamp(m.first, m.last * (1.0 - torch.finfo(mass.dtype).eps))
        t, ratio = self._timesteps(m, mass)
        return (self._within(m, mass, t) if self.continuous else t), ratio

    def _timesteps(self, m: Measure, mass: Tensor) -> tuple[Tensor, Tensor]:
        index = torch.searchsorted(m.cumulative, mass.contiguous(), right=True) - 1
        return index + m.offset, m.total / (self._length * m.density[index])  # exactly 1 for a flat density

    @staticmethod
    def _within(m: Measure, mass: Tensor, t: Tensor) -> Tensor:
        """Real timesteps from the integers below them."""
        low, high = m.cumulative[t - m.offset], m.cumulative[t - m.offset + 1]
        return (t + ((mass - low) / (high - low)).clamp(0, 1)).float()

    def _cells(self, table: Tensor) -> Tensor:
        """A table over timesteps, for real ones as means over the intervals between."""
        return (table[:-1] + table[1:]) / 2 if self.continuous else table

    def update(self, t: Tensor, value: Tensor) -> None:
        """Learn from what was drawn; nothing to learn here."""

    @property
    def q(self) -> Tensor:
        """(max_step - min_step + 1,) the probability of each timestep of the range, or of each interval, one less."""
        m = self._in_range()
        cdf = m.density[self.min_step - m.offset : self.min_step + self._length - m.offset].cumsum(0)
        return torch.diff(cdf / cdf[-1], prepend=cdf.new_zeros(1))

    def to(self, device: torch.device | str) -> TimestepProposal:
        """Moves the tables, in place."""
        self.weights = self.weights.to(device=device, dtype=real_dtype(device))
        self._measured = None
        return self

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only."""
        return {"name": self.name, "min_step": self.min_step, "max_step": self.max_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises CarvError for the state of another kind of proposal."""
        if state.get("name") != self.name:
            raise CarvError(
                f"the saved state is of the proposal {state.get('name')!r} and this one is {self.name!r}: "
                "set the option back, or start from a state without it."
            )
        self.set_range(state["min_step"], state["max_step"])

    def _measure(self) -> Measure:
        raise NotImplementedError

    def _check_weights(self) -> None:
        """CarvError where w(t) cannot be an objective's weight in the range; outside of it any number may stand."""
        if not is_weighting(self._table[self.min_step : self.max_step + 1]):
            where = f"on the timesteps {self.min_step} .. {self.max_step}"
            raise CarvError(f"w(t) is negative or not finite {where}: give weights that are finite and not below 0.")

    def _in_range(self) -> Measure:
        measured = self._measured  # once: another thread may teach this proposal meanwhile
        if measured is None:
            measured = self._measured = self._measure()
        return measured

    @property
    def _length(self) -> int:
        return self.max_step - self.min_step + (0 if self.continuous else 1)


class WeightProposal(TimestepProposal):
    """q ∝ p w, with the w that really multiplies the residual, so that (p/q) w is the same for every draw.

    One running sum C of w over all timesteps serves every range: t is where C reaches C[min] + u (C[max + 1] - C[min]).
    """

    name = "weight"

    def _build(self) -> None:
        self._density = self._unnormalized()
        self._host = self._density.double().cpu()  # so that a range that moves waits for no device
        self._sums = running_sum(torch.where((self._host > 0) & self._host.isfinite(), self._host, 0.0))
        self._cumulative = self._sums.to(self._density)

    def _unnormalized(self) -> Tensor:
        return self._cells(self.weights)

    def _measure(self) -> Measure:
        low, high = self.min_step, self.min_step + self._length
        here = self._host[low:high]
        total = here.sum()  # of no axes, so that it goes with tensors of any device
        if not (bool((here >= 0).all()) and 0 < float(total) < math.inf):
            raise CarvError(
                f"w(t) is zero, negative or not finite on the timesteps {self.min_step} .. {self.max_step}, "
                "so nothing can be drawn in proportion to it: take the proposal 'uniform'."
            )
        first, last = float(self._sums[low]), float(self._sums[high])
        if last - first < 1e-6 * last:  # too small a part of the sum for all its digits
            density = self._density[low:high]
            return Measure(density, running_sum(here).to(density), low, 0.0, float(total), total)
        return Measure(self._density, self._cumulative, 0, first, last, total)

    def to(self, device: torch.device | str) -> WeightProposal:
        """Moves the tables, in place."""
        super().to(device)
        self._density, self._cumulative = self._density.to(self.weights), self._sums.to(self.weights)
        return self


class UniformProposal(WeightProposal):
    """q = p; p/q is exactly 1."""

    name = "uniform"

    def _unnormalized(self) -> Tensor:
        return self._cells(torch.ones_like(self.weights))

    def _measure(self) -> Measure:
        self._check_weights()
        return super()._measure()


class AdaptiveProposal(TimestepProposal):
    """q ∝ p w RMS(|f| / w), the RMS learnt per bin of timesteps, mixed with `floor` of p: p/q <= 1/floor.

    The best q is ∝ p sqrt(E[|f J|^2 | t]) (arXiv 2605.21489); this takes |f|^2 in latent space for it. It is
    fed by `update` after each step and changes at the next `sample` only: a proposal fitted to the draws
    that it then weights would bias the estimate. With nothing learnt it is the weight proposal with the
    floor. Old steps fade with `decay`; a bin with few draws is pulled to the mean of all, by `prior` draws.
    """

    name = "adaptive"
    adapts = True

    def _build(self, bins: int = 50, floor: float = 0.1, decay: float = 0.99, prior: float = 2.0) -> None:
        numbers = isinstance(bins, Integral) and all(map(is_finite, (floor, decay, prior)))
        if not numbers or not (0 < floor <= 1 and 0 < decay <= 1 and 1 <= bins <= self.num_train_timesteps):
            raise CarvError(
                f"the adaptive proposal got bins {shown(bins)}, floor {shown(floor)}, decay {shown(decay)}: bins lie "
                f"in 1 .. {self.num_train_timesteps}, floor and decay above 0 and at most 1."
            )
        self.floor, self.decay, self.prior = floor, decay, prior
        self._sum = self.weights.new_zeros(bins)
        self._count = self.weights.new_zeros(bins)

    def update(self, t: Tensor, value: Tensor) -> None:
        """Learn from what was drawn; values that are not finite are left out.

        Args:
            t: of any shape, as drawn.
            value: of the same shape, |f|^2 of what was drawn at t. f has w in it and p/q not; where draws come in
                pairs, it is the pair's mean, since the pair is what is drawn.
        """
        if t.shape != value.shape:
            raise CarvError(f"t has shape {tuple(t.shape)} and value {tuple(value.shape)}; they must be equal.")
        t, value = t.reshape(-1).to(self._sum.device), value.detach().reshape(-1).to(self._sum)
        t = t.long()  # of a real timestep the interval that it lies in
        w2 = self.weights[t].square()
        value = value / w2
        valid = torch.isfinite(value)
        bins = len(self._sum)
        place = torch.div(t * bins, self.num_train_timesteps, rounding_mode="floor")
        in_bin = F.one_hot(place, bins).to(value.dtype) * valid.to(value.dtype)[:, None]
        self._sum = self.decay * self._sum + torch.where(valid, value, torch.zeros_like(value)) @ in_bin
        self._count = self.decay * self._count + in_bin.sum(0)
        self._measured = None

    def _measure(self) -> Measure:
        self._check_weights()
        density = self._density()
        cumulative = running_sum(density)
        return Measure(density, cumulative / cumulative[-1], self.min_step, 0.0, 1.0, density.sum())

    def _density(self) -> Tensor:
        """The density over the range, of a sum of about 1."""
        mean = self._sum.sum() / self._count.sum()
        mean = torch.where(mean > 0, mean, torch.ones_like(mean))  # NaN (nothing learnt) goes to 1 as well
        rms = ((self._sum + self.prior * mean) / (self._count + self.prior)).sqrt()
        t = torch.arange(self.min_step, self.min_step + self._length, device=rms.device)
        expected = (
            self._cells(self.weights)[t] * rms[torch.div(t * len(rms), self.num_train_timesteps, rounding_mode="floor")]
        )
        flat = torch.full_like(expected, 1.0 / len(expected))
        total = expected.sum()
        expected = torch.where(total > 0, expected / total, flat)
        return (1 - self.floor) * expected + self.floor * flat

    def to(self, device: torch.device | str) -> AdaptiveProposal:
        """Moves the tables; returns self."""
        super().to(device)
        self._sum, self._count = self._sum.to(self.weights), self._count.to(self.weights)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives: what was learnt of each bin."""
        return {**super().state_dict(), "sum": self._sum.cpu(), "count": self._count.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back `state_dict`; CarvError where it has another number of bins."""
        super().load_state_dict(state)
        if state["sum"].shape != self._sum.shape:
            raise CarvError(
                f"the saved adaptive proposal has {len(state['sum'])} bins and this one {len(self._sum)}: "
                "set the number of bins back."
            )
        learnt = [state[name].to(self._sum) for name in ("sum", "count")]
        if not all(bool((x.isfinite() & (x >= 0)).all()) and x.shape == self._sum.shape for x in learnt):
            raise CarvError(
                "the saved adaptive proposal has numbers that are negative or not finite: "
                "start from a state without it."
            )
        self._sum, self._count = learnt
        self._measured = None


def is_weighting(weights: Tensor) -> bool:
    """Whether these are finite real numbers, none below 0. It waits for the device."""
    real = not weights.is_complex() and weights.layout == torch.strided and not weights.is_meta
    return real and bool((weights.isfinite() & (weights >= 0)).all())


def make_proposal(
    name: str,
    schedule: NoiseSchedule,
    weighting: str | Tensor = "sds",
    min_step: int = 0,
    max_step: int | None = None,
    **adaptive: Any,
) -> TimestepProposal:
    """The proposal of that name.

    Args:
        name: one of `PROPOSALS`.
        schedule: T and w(t).
        weighting: the w that multiplies the residual, a name or a table (T,), see `NoiseSchedule.w`.
        min_step: smallest timestep.
        max_step: largest timestep, included; the last if None.
        **adaptive: bins, floor, decay and prior of `AdaptiveProposal`.

    Raises:
        CarvError: a name that does not exist, or a range that does not fit the schedule.
    """
    kinds = {kind.name: kind for kind in (UniformProposal, WeightProposal, AdaptiveProposal)}
    if name not in kinds:
        raise CarvError(f"proposal is {shown(name)}; it must be one of {', '.join(PROPOSALS)}.")
    if not isinstance(schedule, NoiseSchedule):
        raise CarvError(f"schedule is a {type(schedule).__name__}; it must be a NoiseSchedule.")
    for key in adaptive:
        if name != "adaptive" or key not in LEARNING:
            raise CarvError(f"make_proposal got {shown(key)}; the adaptive proposal takes {', '.join(LEARNING)}.")
    return kinds[name](schedule, weighting, min_step, max_step, **adaptive)


def running_sum(density: Tensor) -> Tensor:
    """(n,) -> (n + 1,): the sum of density[:i], from 0 on."""
    return torch.cat([density.new_zeros(1), density.cumsum(0)])


def check_range(min_step: int, max_step: int, num_train_timesteps: int | None = None) -> None:
    """Raises CarvError unless 0 <= min_step <= max_step < num_train_timesteps, in whole numbers."""
    whole = all(isinstance(x, Integral) and not isinstance(x, bool) for x in (min_step, max_step))
    if not whole or not 0 <= min_step <= max_step:
        raise CarvError(
            f"min_step is {shown(min_step)} and max_step {shown(max_step)}; "
            "they must be whole numbers from 0 on, the first not above the second."
        )
    if num_train_timesteps is not None and max_step >= num_train_timesteps:
        raise CarvError(
            f"max_step is {max_step}, but the teacher's timesteps end at {num_train_timesteps - 1}: lower it."
        )
