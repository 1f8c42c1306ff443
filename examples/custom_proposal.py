"""A timestep proposal of one's own: a bell where this model contributes most, with a floor.

`./install.sh python examples/custom_proposal.py`: a few seconds; prints the mean and the variance under both proposals.
"""

from __future__ import annotations

import torch
from torch import Tensor

from carv_3d import CarvEstimator, EstimatorOptions, GaussianTeacher
from carv_3d.core.proposals import Measure, TimestepProposal, running_sum


class BellProposal(TimestepProposal):
    """q is proportional to a bell over the timesteps, plus a floor that bounds p/q."""

    name = "bell"

    def _measure(self) -> Measure:
        t = torch.arange(self.min_step, self.max_step + 1, device=self.weights.device, dtype=self.weights.dtype)
        density = (-0.5 * ((t - 450) / 200) ** 2).exp() + 0.2
        cumulative = running_sum(density)
        return Measure(density, cumulative / cumulative[-1], self.min_step, 0.0, 1.0, density.sum())


def gradients(bell: bool, repeats: int = 400) -> Tensor:
    """(repeats, D): estimates of one gradient with four draws each."""
    teacher = GaussianTeacher(torch.full((1, 2, 4, 4), 0.7, dtype=torch.float64), names=["bright"])
    text = teacher.text_embeddings(["bright"])
    estimator = CarvEstimator(teacher.schedule, EstimatorOptions(num_draws=4, proposal="uniform", stratify="none"))
    if bell:
        estimator.proposal = BellProposal(teacher.schedule, "sds", 20, 980)
    z = torch.zeros(repeats, 2, 4, 4, dtype=torch.float64)  # every repeat is a render of its own
    generator = torch.Generator().manual_seed(0)
    made = estimator.estimate(z, lambda z_t, t: teacher.eps_hat(z_t, t, text.expand(len(t), -1, -1)), None, generator)
    return made.grad.flatten(1)


def main() -> dict[str, tuple[float, float]]:
    """Mean over elements, and variance, of both proposals."""
    made = {name: gradients(bell) for name, bell in (("uniform", False), ("bell", True))}
    return {name: (float(g.mean()), float(g.var(0).sum())) for name, g in made.items()}


if __name__ == "__main__":
    for name, (mean, variance) in main().items():
        print(f"{name}: mean {mean:.4f}, variance {variance:.4f}")
