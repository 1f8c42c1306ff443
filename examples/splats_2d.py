"""A small DreamGaussian in 2D: Gaussians are splatted to an image, distilled, and made denser where they pull most.

`./install.sh python examples/splats_2d.py [STEPS]`: 150 steps take a few minutes; writes outputs/splats_2d.png.

Splatting is nearly free here, so upstream work is the encoder alone: K is small, one antithetic pair.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from carv_3d import GuidanceOptions, SDSGuidance, StableDiffusionTeacher
from carv_3d.io.images import write_png


class Splats(nn.Module):
    """N Gaussians in the square [-1, 1]^2, on a white ground, blended in order."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(count, 2) * 0.35)
        self.log_size = nn.Parameter(torch.full((count, 2), -1.8))
        self.color = nn.Parameter(torch.zeros(count, 3))
        self.opacity = nn.Parameter(torch.full((count,), -1.0))

    def forward(self, size: int = 64) -> Tensor:
        """(1, size, size, 3) in [0, 1], differentiable."""
        axis = torch.linspace(-1, 1, size)
        pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
        away = (pixels[None] - self.place[:, None, None]) / self.log_size.exp()[:, None, None]
        alpha = self.opacity.sigmoid()[:, None, None] * (-0.5 * away.square().sum(-1)).exp()
        left = torch.cat([torch.ones_like(alpha[:1]), (1 - alpha).cumprod(0)])  # light that passes the ones before
        image = ((left[:-1] * alpha)[..., None] * self.color.sigmoid()[:, None, None]).sum(0)
        return (image + left[-1][..., None]).clamp(0, 1)[None]

    @torch.no_grad()
    def densify(self, count: int) -> None:
        """Split the `count` splats whose places are pulled most, and drop the faintest ones."""
        assert self.place.grad is not None
        split = self.place.grad.norm(dim=1).topk(count).indices
        kept = self.opacity.topk(len(self.opacity) - count).indices
        shift = torch.randn(count, 2) * self.log_size[split].exp()
        for name, parameter in list(self.named_parameters()):
            new = parameter[split] + (shift if name == "place" else 0.0) - (0.3 if name == "log_size" else 0.0)
            setattr(self, name, nn.Parameter(torch.cat([parameter[kept], new])))


def main(steps: int = 150, count: int = 200, K: int = 2) -> Tensor:
    """The image, (64, 64, 3) in [0, 1]."""
    torch.manual_seed(0)
    teacher = StableDiffusionTeacher.load("carv-tiny")
    guidance = SDSGuidance(teacher, GuidanceOptions(num_draws=K, antithetic=True, guidance_scale=7.5, seed=0))
    text, uncond = teacher.text_embeddings(["a red apple, front view", ""]).chunk(2)
    splats = Splats(count)
    optimizer = torch.optim.Adam(splats.parameters(), lr=0.02)
    for step in range(steps):
        out = guidance(splats(), text, uncond, step)
        optimizer.zero_grad()
        out.loss_sds.backward()
        optimizer.step()
        if step % 25 == 24 and step < 0.7 * steps:
            splats.densify(count // 10)
            optimizer = torch.optim.Adam(splats.parameters(), lr=0.02)
    return splats()[0].detach()


if __name__ == "__main__":
    image = main(*map(int, sys.argv[1:]))
    Path("outputs").mkdir(exist_ok=True)
    write_png(Path("outputs/splats_2d.png"), image.mul(255).byte().numpy())
