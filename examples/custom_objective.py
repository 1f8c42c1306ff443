"""An objective of one's own: delta denoising score (arXiv 2304.07090), the difference of two predictions.

`./install.sh python examples/custom_objective.py`: a few seconds; prints where the edited latents end.

    f = w(t) (eps_hat(z_t, t, target text) - eps_hat(z'_t, t, source text))

z' are the latents before the edit, noised with the same t and eps. Where nothing is to change, nothing is changed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from carv_3d import CarvEstimator, EstimatorOptions, GaussianTeacher


def main(steps: int = 60) -> tuple[float, float]:
    """Means of the edited half of the latents and of the other; the texts differ in the first half alone."""
    torch.manual_seed(0)
    dark, bright = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    bright[:, :, :2] = 0.8
    teacher = GaussianTeacher(torch.stack([dark, bright]), std=0.3, names=["dark", "bright"])
    source, target = teacher.text_embeddings(["dark", "bright"]).chunk(2)
    schedule = teacher.schedule
    before = torch.zeros(1, 2, 4, 4) + 0.1  # an image that is dark, and a little off everywhere
    z = before.clone().requires_grad_()

    def residual(z_t: Tensor, t: Tensor, eps: Tensor, reference: Tensor) -> Tensor:
        w = schedule.w(t, "sds").to(eps).view(-1, 1, 1, 1)
        both = schedule.add_noise(reference, eps, t)
        n = len(t)
        under_target = teacher.eps_hat(z_t, t, target.expand(n, -1, -1))
        return w * (under_target - teacher.eps_hat(both, t, source.expand(n, -1, -1)))

    estimator = CarvEstimator(schedule, EstimatorOptions(num_draws=8, proposal="weight", antithetic=True))
    optimizer = torch.optim.Adam([z], lr=0.05)
    for _ in range(steps):
        loss = estimator.estimate_residual(z, residual, before).loss  # `before` goes along with each render's draws
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    edited, other = z.detach()[..., :2], z.detach()[..., 2:]
    return float(edited.mean()), float(other.mean())


if __name__ == "__main__":
    edited, other = main()
    print(f"edited half: {edited:.2f}, aim 0.9; other half: {other:.2f}, before 0.10")
