"""One-step distillation in code: a generator of two numbers learns the mean and the spread of an exact teacher.

`./install.sh python examples/distill.py`: a few seconds; prints both.

The generator is `mean + spread * noise`, so its samples are normal too. The fake score, which DMD trains, is then known
in closed form, and only the gradient's own noise is left: `num_draws` lowers it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from carv_3d import EstimatorOptions, GaussianTeacher
from carv_3d.distill.dmd import DistributionMatching

MEAN, STD = 0.6, 0.25


def main(steps: int = 300, K: int = 8) -> tuple[float, float]:
    """Mean and spread that were learnt; the teacher's are 0.6 and 0.25."""
    torch.manual_seed(0)
    teacher = GaussianTeacher(torch.full((1, 1, 2, 2), MEAN), std=STD)
    text, schedule = teacher.text_embeddings([""]), teacher.schedule
    mean, log_spread = (torch.zeros((), requires_grad=True) for _ in range(2))

    def eps_hat_fake(z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        alpha, sigma = (x.view(-1, 1, 1, 1).to(z_t) for x in (schedule.alpha(t), schedule.sigma(t)))
        return sigma * (z_t - alpha * mean) / (alpha**2 * log_spread.exp() ** 2 + sigma**2)

    options = EstimatorOptions(num_draws=K, proposal="weight", antithetic=True, max_batch=4096)
    matching = DistributionMatching(teacher, eps_hat_fake, options, objective="kl")
    optimizer = torch.optim.Adam([mean, log_spread], lr=0.02)
    for _ in range(steps):
        z = mean + log_spread.exp() * torch.randn(32, 1, 2, 2)  # upstream: one pass of the generator ...
        loss = matching.estimate(z, text.expand(32, -1, -1), text).loss  # ... for K draws of both scores
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(mean.detach()), float(log_spread.detach().exp())


if __name__ == "__main__":
    mean, spread = main()
    print(f"mean {mean:.3f} (teacher {MEAN}), spread {spread:.3f} (teacher {STD})")
