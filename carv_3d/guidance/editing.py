"""Renders that a teacher edits: noised to a drawn timestep, then denoised (InstructNeRF2NeRF, arXiv 2303.12789)."""

from __future__ import annotations

import torch
from torch import Tensor

from carv_3d.core.estimator import Draws
from carv_3d.guidance.cfg import Conditioning
from carv_3d.guidance.checks import checked_size
from carv_3d.guidance.images import resized
from carv_3d.guidance.sds import SDSGuidance
from carv_3d.teachers.parts import DDIM


@torch.no_grad()
def edit_images(
    guidance: SDSGuidance, rgb: Tensor, cond: Conditioning, step: int, *, ddim: DDIM, num_steps: int = 20,
    epoch: int = 0, size: tuple[int, int] | None = None, draws: Draws | None = None,
) -> Tensor:  # fmt: skip
    """Images to which renders are fitted. No gradient is estimated, so K has no meaning: t is uniform, one per render.

    Args:
        guidance: its teacher, options (guidance_scale, min_step_percent, max_step_percent, vae_sample) and generator.
        rgb: (R, H, W, 3) in [0, 1].
        cond: of R renders, or of 1 for all.
        step: where the schedules are; steps count from 0.
        ddim: of whose timesteps.
        num_steps: of DDIM from t on; fewer where t is smaller.
        epoch: as step, for schedules that count epochs.
        size: (height, width) that is encoded; the teacher's own unless given.
        draws: t (R, 1) and eps (R, 1, C, h, w), instead of drawing.

    Returns:
        (R, H, W, 3) in [0, 1], without autograd.
    """
    teacher, o, generator = guidance.teacher, guidance.options, guidance.generator
    now = o.at(ddim.schedule.num_train_timesteps, step, epoch)
    images = resized(rgb.permute(0, 3, 1, 2), checked_size(size) or teacher.image_size)
    cond = cond.per_render(len(images))
    z = teacher.encode(images, generator=generator, sample=o.vae_sample != "mode")
    if draws is None:
        t = torch.randint(now.min_step, now.max_step + 1, (len(z),), generator=generator, device=generator.device)
        eps = torch.randn(z.shape, generator=generator, device=generator.device, dtype=z.dtype)
    else:
        t, eps = draws.t[:, 0], draws.eps[:, 0]
    t, eps = t.to(z.device), eps.to(z.device)
    s = cond.scale(now.guidance_scale, o.cfg_convention)
    z = denoised_from(guidance, ddim.schedule.add_noise(z, eps, t), t, cond, s, ddim, num_steps)
    return resized(teacher.decode(z), (rgb.shape[1], rgb.shape[2])).permute(0, 2, 3, 1)


def denoised_from(
    guidance: SDSGuidance, z: Tensor, t: Tensor, cond: Conditioning, s: float, ddim: DDIM, num_steps: int
) -> Tensor:
    """DDIM without noise on the way (arXiv 2010.02502), over equal steps of t / num_steps, as threestudio takes them.

    Args:
        guidance: whose teacher predicts.
        z: (N, C, h, w), at t.
        t: (N,) integers; the chain begins up to one step below.
        cond: of N samples.
        s: the scale in `uncond + s (text - uncond)`.
        ddim: the schedule, the offset of its timesteps, and where the last step ends.
        num_steps: how many; at most the smallest t.

    Returns:
        (N, C, h, w), clean.
    """
    schedule, count = ddim.schedule, max(min(num_steps, int(t.min())), 1)
    stride = t // count
    for i in reversed(range(count)):
        here = (i * stride + ddim.offset).clamp(max=schedule.num_train_timesteps - 1)
        before = here - stride
        eps = guidance.predict(z, here, cond, s).guided
        clean = schedule.z_from("epsilon", z, eps, here)
        back = schedule.add_noise(clean, eps, before.clamp(min=0))
        ended = (before < 0).view(-1, *[1] * (z.dim() - 1))
        z = torch.where(ended, clean, back) if ddim.to_clean else back
    return z
