"""A teacher of one's own: any object with encode, decode, text_embeddings and eps_hat.

`./install.sh python examples/custom_teacher.py`: a few seconds; prints the color that an image was given.

This one knows three colors. Its latents are an image of 4 x 4, and for a prompt they are normal around its color, so
the noise prediction is known in closed form. A network's prediction would stand in its place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from carv_3d import GuidanceOptions, NoiseSchedule, SDSGuidance

COLORS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.8, 0.2), "blue": (0.1, 0.2, 0.9)}


class ColorTeacher:
    """See `carv_3d.Teacher` for what each method takes and gives."""

    latent_channels, latent_size, image_size = 3, 4, 16
    device, dtype = torch.device("cpu"), torch.float32
    std = 0.2

    def __init__(self) -> None:
        self.schedule = NoiseSchedule.scaled_linear()

    def encode(self, images: Tensor, generator: torch.Generator | None = None, sample: bool = True) -> Tensor:
        """(B, 3, 16, 16) -> (B, 3, 4, 4), differentiable."""
        return F.adaptive_avg_pool2d(images, self.latent_size) * 2 - 1

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """There is no noise in this encoder."""
        z = self.encode(images)
        return z, torch.zeros_like(z)

    def decode(self, latents: Tensor, clamp: bool = True) -> Tensor:
        """(B, 3, 4, 4) -> (B, 3, 16, 16)."""
        images = F.interpolate(latents / 2 + 0.5, self.image_size)
        return images.clamp(0, 1) if clamp else images

    def text_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """(B, 1, 3): the mean of the latents; gray for a prompt without a color."""
        known = [next((c for word, c in COLORS.items() if word in p.split()), (0.5, 0.5, 0.5)) for p in prompts]
        return torch.tensor(known)[:, None] * 2 - 1

    def eps_hat(self, z_t: Tensor, t: Tensor, text_emb: Tensor) -> Tensor:
        """`sigma (z_t - alpha mu) / (alpha^2 std^2 + sigma^2)`."""
        alpha, sigma = (x.view(-1, 1, 1, 1).to(z_t) for x in (self.schedule.alpha(t), self.schedule.sigma(t)))
        mu = text_emb[:, 0, :, None, None]
        return sigma * (z_t - alpha * mu) / (alpha**2 * self.std**2 + sigma**2)


def main(prompt: str = "a red wall", steps: int = 60) -> list[float]:
    """The mean color of an image after distillation."""
    torch.manual_seed(0)
    teacher = ColorTeacher()
    guidance = SDSGuidance(teacher, GuidanceOptions(num_draws=4, guidance_scale=1.0, cfg_convention="standard", seed=0))
    text, uncond = teacher.text_embeddings([prompt, ""]).chunk(2)
    image = torch.full((1, 16, 16, 3), 0.5, requires_grad=True)
    optimizer = torch.optim.Adam([image], lr=0.03)
    for step in range(steps):
        loss = guidance(image, text, uncond, step).loss_sds
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return image.detach().mean((0, 1, 2)).tolist()


if __name__ == "__main__":
    print("red, green, blue:", [round(x, 2) for x in main()])
