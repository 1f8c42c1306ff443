"""Does a teacher predict noise at all? Tried on an image of its own, so that a model that was misread is noticed."""

from __future__ import annotations

import logging
from typing import Any

import torch

from carv_3d.core.batching import is_out_of_memory
from carv_3d.errors import CarvError, first_line
from carv_3d.guidance.sampling import sample_images
from carv_3d.teachers.families import BUILT_IN

log = logging.getLogger(__name__)

LEVELS = (0.25, 0.5, 0.75)  # t / T
STEPS = 8  # of DDIM, for the image


@torch.no_grad()
def noise_errors(teacher: Any, seed: int = 0) -> list[float]:
    """The mean squared error of the prediction, over that of predicting zero, at three noise levels.

    A teacher of images is well below 1. The noise counts, and what the network itself predicts: the larger of
    the two errors is given. A velocity of zero, read as noise, is close to the noise where there is much of it. Random
    numbers are its own: nobody else's draws change.

    Args:
        teacher: with its text encoders; it forgets its texts.
        seed: of the noise.

    Returns:
        One number for each of LEVELS; NaN where the prediction is not finite.
    """
    uncond = teacher.text_embeddings([""])
    images = sample_images(teacher, lambda z, t: teacher.eps_hat(z, t, uncond), 1, STEPS, seed)
    z = teacher.encode(images.permute(0, 3, 1, 2), sample=False)
    generator = torch.Generator(device=z.device).manual_seed(seed + 1)
    errors = []
    for level in LEVELS:
        t = torch.tensor([int(level * teacher.schedule.num_train_timesteps)], device=z.device)
        eps = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
        z_t = teacher.schedule.add_noise(z, eps, t)
        prediction, kind = teacher.predict(z_t, t, uncond), teacher.prediction_type
        eps_hat = teacher.schedule.eps_from(kind, z_t, prediction, t)
        pairs = [(eps_hat, eps), (prediction, teacher.target(z, eps, t))]
        errors.append(max(float((x - due).square().mean() / due.square().mean()) for x, due in pairs))
    teacher.forget_texts()  # encoded among others, a text may differ in its last bit
    return errors


def warn_if_poor(teacher: Any, model: str = "") -> None:
    """A line in the log if the teacher predicts noise no better than zero does at some level.

    Args:
        teacher: any.
        model: its name as the user gave it; one that comes with the package was tried before.

    Raises:
        CarvError: it cannot be run at all.
    """
    if model in BUILT_IN:
        return
    try:
        errors = noise_errors(teacher)
    except (RuntimeError, TypeError, ValueError, MemoryError) as error:
        if isinstance(error, CarvError):
            raise
        if not is_out_of_memory(error):
            raise CarvError(
                f"{teacher.name or 'the diffusion model'} cannot be run ({first_line(error)}): a config.json in its "
                "folder is not that of its weights; get the folder anew."
            ) from error
        return  # the run itself says how to need less
    if not all(error < 1 for error in errors):
        log.warning(
            "%s predicts noise no better than zero would (%s of its error, at t/T = %s): its files may be misread or "
            "untrained; see carv doctor MODEL.",
            teacher.name or "the diffusion model", percentages(errors), ", ".join(map(str, LEVELS)),
        )  # fmt: skip


def percentages(errors: list[float]) -> str:
    """Errors in words: "12 %, 5 %, 2 %"."""
    return ", ".join(f"{100 * error:.0f} %" for error in errors)
