"""The loss of a score that is trained on samples while they change: VSD's LoRA, DMD's fake score.

    L = E_{t, eps} mean |predict(z_t, t) - target(z, eps, t)|^2,      t uniform on all timesteps (arXiv 2006.11239)

Each sample is made once and noised K times, laid out by the same designs as every other draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from carv_3d.core.batching import summed_gradients
from carv_3d.core.estimator import CarvEstimator, Draws, EstimatorOptions
from carv_3d.core.options import Stratify
from carv_3d.core.schedule import NoiseSchedule


class Score(Protocol):
    """What is trained: a denoiser with conditions of its own, tensors (N, ...)."""

    @property
    def schedule(self) -> NoiseSchedule:
        """Of its noise."""
        ...

    def parameters(self) -> Iterable[nn.Parameter]:
        """Those that are trained."""
        ...

    def predict(self, z_t: Tensor, t: Tensor, /, *condition: Any) -> Tensor:
        """What the model itself predicts, eps or v: (N, C, h, w), differentiable in the parameters."""
        ...

    def target(self, z: Tensor, eps: Tensor, t: Tensor, /) -> Tensor:
        """What `predict` is trained towards: (N, C, h, w)."""
        ...


def squared_errors(score: Score, z: Tensor, t: Tensor, eps: Tensor, *condition: Tensor) -> Tensor:
    """|prediction - target|^2 under noise, differentiable in the score's parameters.

    Summed over a sample's elements, not averaged: half precision keeps such gradients.

    Args:
        score: the model.
        z: (N, C, h, w), clean.
        t: (N,) integers.
        eps: (N, C, h, w).
        *condition: what `Score.predict` takes, (N, ...) each.

    Returns:
        (N,), float32 at least.
    """
    prediction = score.predict(score.schedule.add_noise(z, eps, t), t, *condition)
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return (prediction.to(dtype) - score.target(z, eps, t).to(dtype)).square().flatten(1).sum(1)


@dataclass
class ScoreGradients:
    """The gradient of the mean squared error over R samples with K draws each.

    Attributes:
        parameters: those that it is with respect to.
        sums: the gradient of the summed squared errors, in each parameter's shape.
        losses: (R K,) squared errors, 0 where a draw was left out.
        finite: (R K,) bool, False where it was, because its batch's gradient was not finite.
        numel: how many elements the mean is over.
    """

    parameters: list[nn.Parameter]
    sums: list[Tensor]
    losses: Tensor
    finite: Tensor
    numel: int

    @property
    def mean(self) -> float:
        """The mean squared error."""
        return float(self.losses.sum()) / self.numel

    def loss(self) -> Tensor:
        """A scalar with this mean as its value and this gradient in the parameters, and in nothing else."""
        inner = torch.stack([(p * total).sum() for p, total in zip(self.parameters, self.sums)]).sum()
        return (inner - inner.detach() + self.losses.sum()) / self.numel

    def store(self) -> None:
        """Leave the gradient in the parameters' grad."""
        for p, total in zip(self.parameters, self.sums):
            p.grad = total / self.numel


class ScoreMatching:
    """K draws of (t, eps) for each sample, and the gradient of the loss on them, batch by batch."""

    def __init__(
        self,
        score: Score,
        num_draws: int = 1,
        stratify: Stratify = "render",
        antithetic: bool = False,
        max_batch: int = 16,
        **estimator: Any,
    ) -> None:
        """K is `num_draws`; pairs are left out where it is odd.

        Args:
            score: the model.
            num_draws: K.
            stratify: see `Design`.
            antithetic: see `Design`.
            max_batch: draws whose graph is in memory at once; halved by itself when memory runs out.
            estimator: more of `EstimatorOptions` (rank and world size, for one).
        """
        self.score, self._max_batch = score, max_batch
        options = EstimatorOptions(
            num_draws=num_draws,
            proposal="uniform",
            stratify=stratify,
            antithetic=antithetic and num_draws % 2 == 0,
            min_step=0,
            max_step=score.schedule.num_train_timesteps - 1,
            **estimator,
        )
        self.estimator = CarvEstimator(score.schedule, options)

    def draw(self, z: Tensor, generator: torch.Generator | None = None) -> Draws:
        """Draws for samples z (R, C, h, w)."""
        return self.estimator.draw(z, generator)

    def gradients(self, z: Tensor, draws: Draws, condition: Sequence[Tensor], scale: float = 1.0) -> ScoreGradients:
        """The gradient of the mean squared error; a batch whose gradient is not finite counts as 0.

        Args:
            z: (R, C, h, w), taken without autograd.
            draws: K for each sample.
            condition: what `Score.predict` takes, tensors (R, ...), or (R K, ...) with one for each draw.
            scale: multiplies the gradient as it is taken, for half precision.

        Raises:
            CarvError: memory runs out on a single draw.
        """
        R, K = draws.t.shape
        t, eps = draws.t.flatten().to(z.device), draws.eps.flatten(0, 1).to(z)
        z = z.detach().repeat_interleave(K, dim=0)
        condition = [c if len(c) == R * K else c.repeat_interleave(K, dim=0) for c in condition]
        parameters = list(self.score.parameters())

        def losses(part: slice) -> Tensor:
            return squared_errors(self.score, z[part], t[part], eps[part], *(c[part] for c in condition))

        sums, squares, finite, held = summed_gradients(losses, R * K, parameters, self._max_batch, scale)
        self._max_batch = held
        return ScoreGradients(parameters, sums, squares, finite, eps.numel())

    def join_ranks(self, rank: int, world_size: int) -> None:
        """Share the strata out among processes that were not yet there when this was built."""
        self.estimator.options = replace(self.estimator.options, rank=rank, world_size=world_size)
