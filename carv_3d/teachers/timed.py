"""A teacher whose calls are timed by phase and counted."""

from __future__ import annotations

from typing import Any

from carv_3d.core.costs import CostMeter


class TimedTeacher:
    """A teacher whose encoding, denoising and decoding are timed, its NFE counted; everything else passes through."""

    def __init__(self, teacher: Any, meter: CostMeter) -> None:
        self._teacher = teacher
        self.encode = meter.timed("encode", teacher.encode)
        self.posterior = meter.timed("encode", teacher.posterior)
        self.decode = meter.timed("decode", teacher.decode)
        self.eps_hat = meter.timed("denoise", teacher.eps_hat, count="nfe")
        if hasattr(teacher, "predict"):
            self.predict = meter.timed("denoise", teacher.predict, count="nfe")
        self.text_embeddings = teacher.text_embeddings
        self.schedule, self.device, self.dtype = teacher.schedule, teacher.device, teacher.dtype
        self.latent_channels, self.latent_size = teacher.latent_channels, teacher.latent_size
        self.image_size = teacher.image_size

    def __repr__(self) -> str:
        return repr(self._teacher)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._teacher, name)
