"""A model as attribution needs it: what it predicts, what it was trained towards, and its parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from carv_3d.core.arguments import described
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError
from carv_3d.runs.checkpoint import module_fingerprint
from carv_3d.teachers.denoiser import Denoiser


@dataclass
class GradientModel:
    """Any denoiser. `module` holds the parameters that gradients are taken of, all of them.

    predict: (z_t (N, ...), t (N,), cond (N, ...) or None) -> (N, ...), through `module`, with autograd.
    target: (z, eps, t) -> (N, ...), what `predict` is trained towards.
    """

    module: nn.Module
    schedule: NoiseSchedule
    predict: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    target: Callable[[Tensor, Tensor, Tensor], Tensor]
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)  # what changes the prediction besides the parameters

    @classmethod
    def from_teacher(cls, teacher: Denoiser) -> GradientModel:
        """A teacher's network, whatever it predicts."""
        predict: Any = teacher.predict
        config = {**dict(getattr(teacher.network, "config", {})), "prediction_type": teacher.prediction_type}
        return cls(teacher.network, teacher.schedule, predict, teacher.target, teacher.name, config)

    @classmethod
    def from_module(cls, module: nn.Module, schedule: NoiseSchedule, name: str = "") -> GradientModel:
        """A module that predicts the noise: module(z_t, t), or module(z_t, t, cond) where items have a condition.

        Raises:
            CarvError: what is no module, or one without parameters.
        """
        if not isinstance(module, nn.Module) or not any(True for _ in module.parameters()):
            raise CarvError(
                f"module is {described(module)}, which has no parameters; give a torch module that has some, since "
                "gradients are taken of these."
            )

        def predict(z_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
            prediction: Tensor = module(z_t, t) if cond is None else module(z_t, t, cond)
            return prediction

        return cls(module, schedule, predict, lambda z, eps, t: eps, name)

    @property
    def parameters(self) -> list[Tensor]:
        """Those that gradients are taken of."""
        return list(self.module.parameters())

    @property
    def num_parameters(self) -> int:
        """How many numbers they hold: the length of a gradient."""
        return sum(p.numel() for p in self.module.parameters())

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.module.parameters()).device

    @contextlib.contextmanager
    def trainable(self) -> Iterator[list[Tensor]]:
        """The parameters with gradients switched on; they and the module's mode are put back afterwards."""
        parameters, training = self.parameters, self.module.training
        before = [p.requires_grad for p in parameters]
        try:
            self.module.eval()
            for p in parameters:
                p.requires_grad_(True)
            yield parameters
        finally:
            for p, flag in zip(parameters, before):
                p.requires_grad_(flag)
            self.module.train(training)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """No parameter is differentiated; they and the module's mode are put back afterwards."""
        with self.trainable() as parameters:
            for p in parameters:
                p.requires_grad_(False)
            yield

    def fingerprint(self) -> str:
        """Of all parameters, to the bit, of the schedule and of the configuration; another model has another."""
        return module_fingerprint(self.module, self.schedule.alphas_cumprod.float(), config=self.config)
