"""What the teacher sees in a step's renders: the noisy latents of one draw, denoised to an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from carv_3d.guidance.sampling import ddim
from carv_3d.guidance.sds import GuidanceOutput, SDSGuidance


@torch.no_grad()
def denoised_previews(
    guidance: SDSGuidance, output: GuidanceOutput, max_items: int = 4, num_steps: int = 50
) -> dict[str, Any]:
    """The first draw of some renders, denoised, as threestudio's `guidance_eval` shows them.

    The guidance's own generator is left alone.

    Args:
        guidance: whose teacher denoises.
        output: of the step.
        max_items: how many renders at most; 0 or less: all.
        num_steps: of DDIM, over all timesteps.

    Returns:
        bs (how many), noise_levels (t / T of each), and images (bs, H, W, 3) in [0, 1]: imgs_noisy, imgs_1orig (the
        clean image guessed at once), imgs_1step (one DDIM step, eta 1), imgs_final (all steps that are left).
    """
    estimate, teacher, schedule = output.estimate, guidance.teacher, guidance.teacher.schedule
    n = min(max_items, len(estimate.t)) if max_items > 0 else len(estimate.t)
    bounded = getattr(teacher, "bounded", False)
    scheduler = ddim(schedule.alphas_cumprod, num_steps, bounded)
    timesteps = scheduler.timesteps.to(teacher.device)
    t = estimate.t[:n, 0].to(teacher.device)
    z_t = schedule.add_noise(output.latents[:n].detach(), estimate.eps[:n, 0], t)
    # the first timestep of the chain (it descends) that is not above t
    first = (timesteps[None] > t[:, None]).sum(1).clamp_max(len(timesteps) - 1).tolist()
    generator = torch.Generator(device=teacher.device).manual_seed(0)
    one_step, clean, final = [], [], []
    for b, start in enumerate(first):
        z = z_t[b : b + 1] / schedule.norm(t[b]).to(z_t)
        cond = output.cond.samples(slice(b, b + 1))
        for i, now in enumerate(timesteps[start:]):
            eps = guidance.predict(z * schedule.norm(now).to(z), now.expand(1), cond, output.scale).guided
            step = scheduler.step(eps, int(now), z, eta=1.0, generator=generator, use_clipped_model_output=bounded)
            z = step.prev_sample
            if i == 0:
                one_step.append(z)
                clean.append(step.pred_original_sample)
        final.append(z)

    def images(latents: Tensor) -> Tensor:
        return teacher.decode(latents).permute(0, 2, 3, 1)

    return {
        "bs": n,
        "noise_levels": [float(timesteps[i]) / schedule.num_train_timesteps for i in first],
        "imgs_noisy": images(z_t),
        "imgs_1step": images(torch.cat(one_step)),
        "imgs_1orig": images(torch.cat(clean)),
        "imgs_final": images(torch.cat(final)),
    }
