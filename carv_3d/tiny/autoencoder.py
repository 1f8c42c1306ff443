"""The KL autoencoder of carv-tiny: images of 64×64 or 128×128 to 16×16×4 latents, robust to half-made renders."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from carv_3d.scenes.backgrounds import light_colors
from carv_3d.tiny.dataset import Images

WIDTHS = {64: (16, 32, 64), 128: (16, 32, 64, 64)}  # by image size; each level but the last halves the image
LATENT_WEIGHT = 0.2  # of the distance from the latents of an older autoencoder


def config(size: int = 64) -> dict[str, Any]:
    """Of diffusers' AutoencoderKL for images of `size` rows, 64 or 128: latents (4, 16, 16) for both."""
    levels = len(WIDTHS[size])
    return {
        "in_channels": 3, "out_channels": 3, "sample_size": size, "latent_channels": 4, "layers_per_block": 1,
        "norm_num_groups": 8, "block_out_channels": WIDTHS[size], "mid_block_add_attention": False,
        "down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels,
    }  # fmt: skip


def light_backgrounds(count: int, generator: torch.Generator, white: float = 0.4) -> Tensor:
    """``(count, 3)``: white for a share, else light and hardly colored (saturated ones ruin the autoencoder)."""
    light = light_colors(count, 0.72, 0.16, generator)
    plain = torch.rand(count, 1, generator=generator) < white
    return torch.where(plain, torch.ones(count, 3), light)


def batch(images: Images, count: int, generator: torch.Generator) -> Tensor:
    """Images ``(count, 3, S, S)`` in [0, 1], a third of which look half trained: fog, blends, blur, color patches."""
    background = light_backgrounds(count, generator)
    index = torch.randint(len(images.shots), (count,), generator=generator).numpy()
    x = torch.from_numpy(images.on(index, background.numpy().astype(np.float32))).permute(0, 3, 1, 2).contiguous()
    size = x.shape[-2:]
    fog = background[:, :, None, None]
    share = torch.rand(count, 1, 1, 1, generator=generator)
    kind = torch.rand(count, 1, 1, 1, generator=generator)
    patches = F.interpolate(torch.rand(count, 3, 5, 5, generator=generator), size, mode="bilinear")
    blurred = F.interpolate(F.avg_pool2d(x, 4), size, mode="bilinear")
    x = torch.where(kind < 0.12, share * x + (1 - share) * fog, x)
    x = torch.where((kind >= 0.12) & (kind < 0.20), share * x + (1 - share) * x.flip(0), x)
    x = torch.where((kind >= 0.20) & (kind < 0.28), share * x + (1 - share) * blurred, x)
    x = torch.where((kind >= 0.28) & (kind < 0.36), share * x + (1 - share) * patches, x)
    return x


def loss(vae: Any, x: Tensor, generator: torch.Generator, older: Any = None) -> Tensor:
    """The autoencoder's loss on images ``x (N, 3, S, S)`` in [0, 1]; a scalar.

    Absolute and squared error, error of the finite differences (edges) and of the mean color of 8×8 patches, and a
    faint KL term. With a KL weight of 2e-3 and no patches one axis of hue was lost: pink came out beige. With an
    `older` autoencoder of smaller images the latents stay near its own, so that its UNet can be trained further.
    """
    x = 2 * x - 1
    posterior = vae.encode(x).latent_dist
    z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
    y = vae.decode(z).sample
    edges = sum((a.diff(dim=d) - b.diff(dim=d)).abs().mean() for a, b in ((x, y),) for d in (2, 3))
    patches = (F.avg_pool2d(x, 8) - F.avg_pool2d(y, 8)).square().mean()
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    total = (x - y).abs().mean() + (x - y).square().mean() + 0.5 * edges + 4 * patches + 1e-5 * kl
    if older is None:
        return total
    with torch.no_grad():
        target = older.encode(F.interpolate(x, older.config.sample_size, mode="area")).latent_dist.mean
    distance = (posterior.mean - target).square().mean() * older.config.scaling_factor**2
    return total + LATENT_WEIGHT * distance


@torch.no_grad()
def psnr(vae: Any, x: Tensor) -> float:
    """Of ``decode(encode(x))``, in dB, over images ``x (N, 3, H, W)`` in [0, 1]."""
    y = vae.decode(vae.encode(2 * x - 1).latent_dist.mean).sample.add(1).div(2).clamp(0, 1)
    return float(-10 * torch.log10((x - y).square().mean()))


@torch.no_grad()
def encode_all(vae: Any, images: Images, background: str, seed: int, log: Any = print) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation of every image, ``(N, 4, 16, 16)`` half precision each."""
    means, stds, n = [], [], len(images.shots)
    generator = torch.Generator().manual_seed(seed)
    for i in range(0, n, 250):
        index = np.arange(i, min(i + 250, n))
        color = light_backgrounds(len(index), generator, white=1.0 if background == "white" else 0.0)
        x = torch.from_numpy(images.on(index, color.numpy())).permute(0, 3, 1, 2).contiguous()
        posterior = vae.encode(2 * x - 1).latent_dist
        means.append(posterior.mean.half())
        stds.append(posterior.std.half())
    log(f"encoded {n} images on {background}")
    return torch.cat(means), torch.cat(stds)
