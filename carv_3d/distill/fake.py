"""The fake score: a model of what the generator makes, trained on it while it changes (arXiv 2311.18828, section 3.2).

Each generated sample is made once and noised K_fake times, laid out by the same designs as every other draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from carv_3d.core.batching import RowGradients, summed_gradients
from carv_3d.core.estimator import CarvEstimator, Draws, EstimatorOptions
from carv_3d.distill.network import Network


class FakeScore(Network):
    """`eps_hat(z_t, t, text_emb)` of the generator's own distribution."""

    def squared_errors(self, z: Tensor, t: Tensor, eps: Tensor, text_emb: Tensor) -> Tensor:
        """(N,) |prediction - target|^2 of z (N, C, h, w) under noise eps, in what the UNet itself predicts (eps or v).

        Differentiable in the parameters. Summed over a row, not averaged.
        """
        z_t = self.schedule.add_noise(z, eps, t)
        target = eps if self.prediction_type == "epsilon" else self.schedule.v(z, eps, t)
        return (self.predict(z_t, t, text_emb) - target).square().flatten(1).sum(1)


@dataclass
class FakeLoss:
    """loss: the mean squared error over rows and elements. finite: share of the rows that trained.

    The gradient of `loss` is left in the parameters' grad.
    """

    loss: float
    finite: float


class FakeTraining:
    """The fake score's loss, K_fake draws for each latent; t is uniform on all timesteps, as in its first training."""

    def __init__(
        self,
        fake: FakeScore,
        num_draws: int,
        stratify: str = "render",
        antithetic: bool = False,
        max_batch: int = 16,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """num_draws: K_fake. Pairs are left out where it is odd. rank, world_size: see EstimatorOptions."""
        self.fake = fake
        self.draws = CarvEstimator(
            fake.schedule,
            EstimatorOptions(
                num_draws=num_draws,
                proposal="uniform",
                stratify=stratify,
                antithetic=antithetic and num_draws % 2 == 0,
                min_step=0,
                max_step=fake.schedule.num_train_timesteps - 1,
                rank=rank,
                world_size=world_size,
                shared_seed=1,
            ),
        )
        self._max_batch = max_batch

    def backward(
        self,
        z: Tensor,
        text_emb: Tensor,
        generator: torch.Generator | None = None,
        draws: Draws | None = None,
        scale: float = 1.0,
    ) -> FakeLoss:
        """Leaves the gradient of the mean squared error, times `scale`, in the parameters' grad.

        z: (R, C, h, w), taken without autograd; text_emb: (R, L, D). draws: explicit ones, instead of drawing.
        Rows go through in batches of at most max_batch; raises CarvError where memory runs out on one.
        """
        z = z.detach()
        draws = self.draws.draw(z, generator) if draws is None else draws
        K = draws.t.shape[1]
        t, eps = draws.t.flatten().to(z.device), draws.eps.flatten(0, 1).to(z)
        z, text_emb = z.repeat_interleave(K, dim=0), text_emb.repeat_interleave(K, dim=0)
        parameters = list(self.fake.parameters())

        def losses(rows: slice) -> Tensor:
            return self.fake.squared_errors(z[rows], t[rows], eps[rows], text_emb[rows])

        found: RowGradients = summed_gradients(losses, len(t), parameters, self._max_batch, scale)
        self._max_batch = found.max_batch
        for p, total in zip(parameters, found.gradients):
            p.grad = total / eps.numel()
        return FakeLoss(float(found.losses.sum()) / eps.numel(), float(found.finite.float().mean()))
