"""Attribution in code: which training items of a small diffusion model made a sample?

`./install.sh python examples/attribute.py`: a few seconds; prints the scores of both kinds of items.

The items are points around two centers. A query near one of them should be answered by that center's items.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from carv_3d import NoiseSchedule
from carv_3d.attribution import FeatureMaker, FeatureOptions, GradientModel, GroupedDrawOptions, cosine


class Denoiser(nn.Module):
    """Predicts the noise of points (N, 2, 1, 1)."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        """Noise of the shape of z_t."""
        return self.net(torch.cat([z_t.flatten(1), t[:, None] / 1000], 1)).view_as(z_t)


def main(items: int = 40, training: int = 400, num_draws: int = 16) -> tuple[Tensor, Tensor]:
    """Scores (items,) of a query near the first center, and their standard errors; even items are of that center."""
    torch.manual_seed(0)
    schedule = NoiseSchedule.scaled_linear()
    centers = torch.tensor([[1.5, 1.0], [-1.5, -1.0]])
    points = (centers[torch.arange(items) % 2] + 0.2 * torch.randn(items, 2)).view(-1, 2, 1, 1)
    network = Denoiser()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(training):
        z, t, eps = points[torch.randint(items, (128,))], torch.randint(1000, (128,)), torch.randn(128, 2, 1, 1)
        loss = (network(schedule.add_noise(z, eps, t), t) - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    draws = GroupedDrawOptions(num_draws=num_draws, groups=2, antithetic=True)
    maker = FeatureMaker(GradientModel.from_module(network, schedule), FeatureOptions(draws=draws, dim=256))
    features = torch.stack([maker.feature(f"item {i}", points[i]) for i in range(items)])  # (N, groups, dim)
    query = maker.feature("query", centers[0].view(2, 1, 1))[None]
    scores = cosine(query, features)
    return scores.values[0], scores.errors[0]


if __name__ == "__main__":
    values, errors = main()
    for name, first in (("near the query's center", 0), ("near the other", 1)):
        print(f"{name}: mean score {values[first::2].mean():.3f}, standard errors about {errors[first::2].mean():.3f}")
