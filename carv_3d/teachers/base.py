"""What a frozen diffusion model offers to the estimators, and guidance written once for all of them.

A *teacher* turns images into latents and latents into noise predictions. It knows no
renderer, no estimator and no host. Everything here speaks of `eps_hat(z_t, t, y)`, the noise
prediction of arXiv 2605.21489: a model that predicts `v` converts it before it returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError

CFG_CONVENTIONS = ("standard", "threestudio")


class NoisePredictor(Protocol):
    """What guidance needs of a model."""

    def eps_hat(self, z_t: Tensor, t: Tensor, text_emb: Tensor) -> Tensor:
        """Noise prediction without guidance: (N, C, h, w), t (N,), (N, L, D) -> (N, C, h, w)."""
        ...


@runtime_checkable
class Teacher(NoisePredictor, Protocol):
    """The protocol. `N` rows are free: the estimator lays renders times draws along them.

    schedule: alpha_t and sigma_t of the model's own training, on `device`.
    latent_channels, latent_size: latents are (N, latent_channels, latent_size, latent_size).
    image_size: images are (B, 3, image_size, image_size) in [0, 1].
    device, dtype: where the model is and what it computes in; inputs and outputs of the methods
        keep the caller's dtype (float32 as a rule), whatever `dtype` is.
    """

    schedule: NoiseSchedule
    latent_channels: int
    latent_size: int
    image_size: int
    device: torch.device
    dtype: torch.dtype

    def encode(self, images: Tensor, generator: torch.Generator | None = None, sample: bool = True) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> scaled latents (B, C, h, w), differentiable in `images`.

        `sample` draws once from the posterior per image (noise that counts as upstream);
        otherwise its mode is taken.
        """
        ...

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The distribution that `encode` samples: mean and standard deviation (B, C, h, w), both differentiable."""
        ...

    def decode(self, latents: Tensor, clamp: bool = True) -> Tensor:
        """Scaled latents (B, C, h, w) -> images (B, 3, H, W), differentiable in `latents`."""
        ...

    def text_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> (B, L, D), without gradient."""
        ...

    def eps_hat_cfg(
        self,
        z_t: Tensor,
        t: Tensor,
        cond: Tensor,
        uncond: Tensor,
        guidance_scale: float,
        convention: str = "standard",
    ) -> Tensor:
        """Noise prediction with classifier-free guidance, see `classifier_free_eps_hat`."""
        ...


def effective_scale(guidance_scale: float, convention: str) -> float:
    """The `s` in `uncond + s (text - uncond)`.

    "standard" takes the scale as it is. "threestudio" is `text + scale (text - uncond)`, what
    threestudio's stable-diffusion-guidance computes: the same thing at `scale + 1`.
    Raises CarvError for any other name.
    """
    if convention not in CFG_CONVENTIONS:
        raise CarvError(f"cfg_convention is {convention!r}; it must be one of {', '.join(CFG_CONVENTIONS)}.")
    return float(guidance_scale) + (1.0 if convention == "threestudio" else 0.0)


def classifier_free_eps_hat(
    teacher: NoisePredictor,
    z_t: Tensor,
    t: Tensor,
    cond: Tensor,
    uncond: Tensor,
    guidance_scale: float,
    convention: str = "standard",
) -> Tensor:
    """`uncond + s (text - uncond)` in one batch of 2N rows (N where s is 0 or 1: exact, and half the work).

    z_t (N, C, h, w); t (N,) integers; cond, uncond (N, L, D). Returns (N, C, h, w) in z_t's dtype.
    """
    s = effective_scale(guidance_scale, convention)
    if s == 1.0:
        return teacher.eps_hat(z_t, t, cond)
    if s == 0.0:
        return teacher.eps_hat(z_t, t, uncond)
    both = teacher.eps_hat(torch.cat([z_t, z_t]), torch.cat([t, t]), torch.cat([cond, uncond]))
    eps_text, eps_uncond = both.chunk(2)
    return eps_uncond + s * (eps_text - eps_uncond)


class ClassifierFree:
    """Gives a class with `eps_hat` its guidance."""

    def eps_hat_cfg(
        self: NoisePredictor,
        z_t: Tensor,
        t: Tensor,
        cond: Tensor,
        uncond: Tensor,
        guidance_scale: float,
        convention: str = "standard",
    ) -> Tensor:
        """See `classifier_free_eps_hat`."""
        return classifier_free_eps_hat(self, z_t, t, cond, uncond, guidance_scale, convention)
