"""A teacher whose calls are timed by phase and counted."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from carv_3d.core.costs import CostMeter


class TimedTeacher:
    """A teacher whose calls are timed by phase and counted; everything else passes through."""

    def __init__(self, teacher: Any, meter: CostMeter) -> None:
        self._teacher, self._meter = teacher, meter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._teacher, name)

    def encode(self, *args: Any, **kwargs: Any) -> Tensor:
        """As `Teacher.encode`, timed."""
        with self._meter.phase("encode"):
            latents: Tensor = self._teacher.encode(*args, **kwargs)
        return latents

    def posterior(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As the teacher, timed as encoding."""
        with self._meter.phase("encode"):
            mean, std = self._teacher.posterior(*args, **kwargs)
        return mean, std

    def decode(self, *args: Any, **kwargs: Any) -> Tensor:
        """As `Teacher.decode`, timed."""
        with self._meter.phase("decode"):
            images: Tensor = self._teacher.decode(*args, **kwargs)
        return images

    def eps_hat(self, z_t: Tensor, t: Tensor, text_emb: Tensor) -> Tensor:
        """As `Teacher.eps_hat`, timed, its rows counted."""
        with self._meter.phase("denoise"):
            eps: Tensor = self._teacher.eps_hat(z_t, t, text_emb)
        self._meter.count(nfe=z_t.shape[0])  # after it succeeded: a batch that ran out of memory is tried again
        return eps
