"""The first draw of each render, denoised from the noise level where it stands."""

from __future__ import annotations

import pytest
import torch

from carv_3d.core.estimator import Draws
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.guidance.previews import denoised_previews
from carv_3d.guidance.sds import GuidanceOptions, SDSGuidance
from carv_3d.teachers.gaussian import GaussianTeacher


def test_the_chain_begins_at_the_first_draw_and_its_timestep() -> None:
    g = torch.Generator().manual_seed(0)
    teacher = GaussianTeacher(torch.randn(1, 3, 2, 2, generator=g), std=0.4)
    guidance, text = SDSGuidance(teacher, GuidanceOptions(guidance_scale=1.0, seed=0)), teacher.text_embeddings([""])
    # 50 steps of 20 timesteps: 0, 20, 40, ...
    draws = Draws(torch.tensor([[500, 900], [510, 100]]), torch.randn(2, 2, 3, 2, 2, generator=g))
    rgb = torch.rand(2, 2, 2, 3, generator=g).requires_grad_()
    out = guidance(rgb, text, text, step=0, draws=draws)
    previews = denoised_previews(guidance, out)
    assert (previews["bs"], previews["noise_levels"]) == (2, [0.5, 0.5])
    z_t = teacher.schedule.add_noise(out.latents.detach(), draws.eps[:, 0], draws.t[:, 0])
    torch.testing.assert_close(previews["imgs_noisy"], teacher.decode(z_t).permute(0, 2, 3, 1))


@pytest.mark.parametrize("schedule", [NoiseSchedule.flow(shift=3.0), NoiseSchedule.edm()])
def test_a_clean_guess_is_that_of_its_own_schedule(schedule: NoiseSchedule) -> None:
    g = torch.Generator().manual_seed(0)
    teacher = GaussianTeacher(0.3 * torch.randn(1, 3, 2, 2, generator=g), std=0.2, schedule=schedule)
    guidance, text = SDSGuidance(teacher, GuidanceOptions(guidance_scale=1.0, seed=0)), teacher.text_embeddings([""])
    draws = Draws(torch.tensor([[500], [500]]), torch.randn(2, 1, 3, 2, 2, generator=g))
    out = guidance(torch.rand(2, 2, 2, 3, generator=g).requires_grad_(), text, text, step=0, draws=draws)
    previews = denoised_previews(guidance, out)
    t = draws.t[:, 0]
    z_t = schedule.add_noise(out.latents.detach(), draws.eps[:, 0], t)
    clean = schedule.z_from("epsilon", z_t, teacher.eps_hat(z_t, t, text.expand(2, 1, 1)), t)
    torch.testing.assert_close(previews["imgs_1orig"], teacher.decode(clean).permute(0, 2, 3, 1), rtol=1e-4, atol=1e-4)
