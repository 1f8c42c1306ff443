"""Images from a teacher alone: DDIM from pure noise, with or without guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.guidance.cfg import classifier_free


@torch.no_grad()
def sample_images(
    teacher: Any,
    eps_hat: Callable[[Tensor, Tensor], Tensor],
    num: int,
    num_steps: int = 25,
    seed: int = 0,
    noise: Tensor | None = None,
) -> Tensor:
    """Images from pure noise, by DDIM (arXiv 2010.02502) without noise on the way.

    Args:
        teacher: its schedule and decoder.
        eps_hat: called as eps_hat(z_t (num, C, h, w), t (num,)), on the teacher's latents and timesteps.
        num: how many images.
        num_steps: DDIM steps.
        seed: of the noise.
        noise: (num, C, h, w) to begin from, in place of the seed's.

    Returns:
        (num, H, W, 3) in [0, 1], without autograd.
    """
    schedule = teacher.schedule
    bounded = getattr(teacher, "bounded", False)
    scheduler = ddim(schedule.alphas_cumprod, num_steps, bounded)
    z = pure_noise(teacher, num, seed) if noise is None else noise
    for t in scheduler.timesteps:
        here = t.to(z.device).expand(num)
        # z is variance preserving, as DDIM takes it; the teacher is given its own z_t
        eps = eps_hat(z * schedule.norm(here[:1]).to(z), here)
        z = scheduler.step(eps, int(t), z, use_clipped_model_output=bounded).prev_sample
    images: Tensor = teacher.decode(z)
    return images.permute(0, 2, 3, 1)


@torch.no_grad()
def denoise(
    schedule: NoiseSchedule, eps_hat: Callable[[Tensor, Tensor], Tensor], z_t: Tensor, t: Tensor, num_steps: int
) -> Tensor:
    """Clean latents from noisy ones, by DDIM (arXiv 2010.02502) without noise on the way, in steps of equal length.

    Args:
        schedule: of the model.
        eps_hat: called as eps_hat(z_t (N, C, h, w), t (N,)).
        z_t: (N, C, h, w).
        t: (N,) integers, a timestep for each.
        num_steps: how many; 1 guesses the clean latents at once.

    Returns:
        (N, C, h, w), without autograd.
    """
    for i in range(num_steps):
        now, after = (torch.div(t * (num_steps - j), num_steps, rounding_mode="floor") for j in (i, i + 1))
        eps = eps_hat(z_t, now)
        z = schedule.z_from("epsilon", z_t, eps, now)
        z_t = z if i == num_steps - 1 else schedule.add_noise(z, eps, after)
    return z_t


def prompt_images(
    teacher: Any,
    prompts: Sequence[str],
    guidance_scale: float,
    num_steps: int = 25,
    seed: int = 0,
    noise: Tensor | None = None,
) -> Tensor:
    """An image of each prompt, by `sample_images` with classifier-free guidance `uncond + s (text - uncond)`."""
    cond, uncond = teacher.text_embeddings(prompts), teacher.text_embeddings([""] * len(prompts))

    def eps_hat(z_t: Tensor, t: Tensor) -> Tensor:
        return classifier_free(teacher.eps_hat, z_t, t, (cond,), (uncond,), guidance_scale)

    return sample_images(teacher, eps_hat, len(prompts), num_steps, seed, noise)


def pure_noise(teacher: Any, num: int, seed: int) -> Tensor:
    """(num, C, h, w) standard normal, the teacher's latents at T - 1 over `NoiseSchedule.norm`, on its device."""
    generator = torch.Generator(device=teacher.device).manual_seed(seed)
    shape = (num, teacher.latent_channels, teacher.latent_size, teacher.latent_size)
    return torch.randn(shape, generator=generator, device=teacher.device)


def ddim(alphas_cumprod: Tensor, num_steps: int, bounded: bool = False) -> Any:
    """The DDIM of diffusers over `num_steps` timesteps of a schedule of one's own, (T,).

    Args:
        alphas_cumprod: (T,).
        num_steps: how many.
        bounded: cut the clean sample to [-1, 1] at each step, for models of pixels. `step` is then to be given
            `use_clipped_model_output=True`, so that the noise is that of the cut sample.
    """
    from diffusers import DDIMScheduler

    abar = alphas_cumprod.double().cpu()
    betas = 1 - abar / torch.cat([abar.new_ones(1), abar[:-1]])
    scheduler = DDIMScheduler(
        num_train_timesteps=len(abar), trained_betas=betas.tolist(), clip_sample=bounded, set_alpha_to_one=False
    )
    scheduler.set_timesteps(min(num_steps, len(abar)))
    return scheduler
