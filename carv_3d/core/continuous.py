"""A noise schedule over real timesteps, as flow matching is trained with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from carv_3d.core.arguments import described
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.core.schedule_tables import check_agree
from carv_3d.errors import CarvError


class ContinuousSchedule(NoiseSchedule):
    """A schedule whose t is any real number in [0, T - 1]; at whole ones it is `NoiseSchedule` to the last bit.

        ContinuousSchedule.flow(shift=3.0), ContinuousSchedule.from_diffusers(pipe.scheduler)
        ContinuousSchedule.from_schedule(schedule)

    It has the constructors of `NoiseSchedule`. Estimators draw t uniformly from the real numbers in
    [min_step, max_step] then, and the proposals' densities are constant from one whole timestep to the next.
    Between whole timesteps abar_t ("vp") or sigma_t ("flow", "edm") is linear in t, and alpha_t and the network's time
    follow from it, so that alpha_t^2 + sigma_t^2 = 1, alpha_t + sigma_t = 1 or alpha_t = 1. Weights are linear too.
    """

    continuous = True

    @classmethod
    def from_schedule(cls, schedule: NoiseSchedule) -> ContinuousSchedule:
        """The same noise, at real timesteps.

        Args:
            schedule: of any family.

        Raises:
            CarvError: something else.
        """
        if not isinstance(schedule, NoiseSchedule):
            raise CarvError(f"schedule is {described(schedule)}; it must be a NoiseSchedule.")
        made, s = cls.__new__(cls), schedule
        made._set(s.family, s.alphas_cumprod, s._alpha, s._sigma, s.times, s.sigma_data)
        made.prediction_type = s.prediction_type
        return made

    def alpha(self, t: Tensor) -> Tensor:
        """alpha_t for timesteps of any shape; the same shape back."""
        if self.family == "vp":
            return between(self.alphas_cumprod, t).sqrt()
        return between(self._alpha, t)

    def sigma(self, t: Tensor) -> Tensor:
        """sigma_t for timesteps of any shape; the same shape back."""
        if self.family == "vp":
            return (1 - between(self.alphas_cumprod, t)).sqrt()
        return between(self._sigma, t)

    def _both(self, t: Tensor, given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        check_agree(t, **given)
        return self.alpha(t), self.sigma(t)

    def _times(self, t: Tensor) -> Tensor:
        assert self.times is not None
        return self.sigma(t).log() / 4 if self.family == "edm" else between(self.times, t)

    def w(self, t: Tensor, strategy: str | Tensor = "sds") -> Tensor:
        """The weight that multiplies the residual at t, of t's shape.

        Args:
            t: real or whole timesteps.
            strategy: as of `NoiseSchedule.w`.

        Raises:
            CarvError: as `NoiseSchedule.w`.
        """
        return between(self.weights(strategy), t)


def between(table: Tensor, t: Tensor) -> Tensor:
    """A table (T,) at real timesteps t of any shape, linear from entry to entry; CarvError where t is none."""
    try:
        if t.is_meta:
            raise TypeError("t is without data")
        t = t.to(table.device)
        low = t.floor().long()
        share = (t - low).to(table.dtype)
        high = low + (share > 0)
        first, second = (table.index_select(0, x.reshape(-1)).view(t.shape) for x in (low, high))
        return torch.where(share > 0, first + share * (second - first), first)
    except (TypeError, AttributeError, LookupError, RuntimeError) as error:
        problem = real_problem(t, len(table))
        if not problem:
            raise
        raise CarvError(f"t {problem}.") from error


def real_problem(t: Tensor, T: int) -> str:
    """What keeps t from being real timesteps of a schedule; "" for nothing."""
    if not isinstance(t, Tensor) or t.is_meta:
        return f"is {described(t)}; it must be a tensor of timesteps, as torch.tensor([500.5])"
    if t.dtype.is_complex or t.dtype == torch.bool:
        return f"is of type {t.dtype}; timesteps are real numbers"
    if t.numel() and not (t.isfinite().all() and 0 <= float(t.min()) <= float(t.max()) <= T - 1):
        return f"goes from {float(t.min()):g} to {float(t.max()):g}; the timesteps of this schedule are 0 to {T - 1}"
    return ""
