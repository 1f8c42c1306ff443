"""Score distillation in plain torch: an image is painted until the model takes it for a red mug.

`./install.sh python examples/own_loop.py [STEPS]`: 60 steps take a minute or two; writes outputs/own_loop.png.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from carv_3d import NoiseSchedule, StableDiffusionTeacher, sds_loss
from carv_3d.io.images import write_png


def main(steps: int = 60, K: int = 4) -> torch.Tensor:
    """The image, (3, 64, 64) in [0, 1]."""
    torch.manual_seed(0)
    model = StableDiffusionTeacher.load("carv-tiny")
    schedule: NoiseSchedule = model.schedule
    text, uncond = model.text_embeddings(["a red mug, front view", ""]).chunk(2)

    def eps_hat(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:  # classifier-free guidance at 7.5
        both = torch.cat([uncond, text]).repeat_interleave(len(t), 0)
        without, under = model.eps_hat(torch.cat([z_t, z_t]), torch.cat([t, t]), both).chunk(2)
        return without + 7.5 * (under - without)

    theta = torch.full((1, 3, 64, 64), 2.0, requires_grad=True)  # your scene; here the pixels themselves
    optimizer = torch.optim.Adam([theta], lr=0.1)
    for _ in range(steps):
        latents = model.encode(theta.sigmoid())  # render and encode once ...
        loss = sds_loss(latents, eps_hat, schedule, num_draws=K, antithetic=True, min_step=200)  # ... for K draws
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return theta.sigmoid()[0].detach()


if __name__ == "__main__":
    image = main(*map(int, sys.argv[1:]))
    Path("outputs").mkdir(exist_ok=True)
    write_png(Path("outputs/own_loop.png"), image.permute(1, 2, 0).mul(255).byte().numpy())
