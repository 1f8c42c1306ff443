"""What one draw of (t, eps) adds to the gradient in latent space, for each objective: a pure function.

    f = objective(e, eps, z_t, t, schedule, w)          z_t = alpha_t z + sigma_t eps

All take and return samples (N, C, h, w), without state and without autograd. eps is the noise; e holds the noise
predictions that the objective needs; t is (N,) and w (N, 1, 1, 1), the objective's weight w(t). Whatever is not linear
in a draw belongs in here, before the mean over draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from carv_3d.core.schedule import NoiseSchedule


class EpsHat(NamedTuple):
    """Noise predictions for the same z_t, each (N, C, h, w) and without autograd, or None where it was not run.

    Attributes:
        text: under the prompt.
        uncond: under the empty prompt.
        guided: under classifier-free guidance, `uncond + s (text - uncond)`.
        negative: under a negative prompt.
        trained: of a model of the renders or of the generator's samples, trained while they change.
    """

    text: Tensor = None  # type: ignore[assignment]
    uncond: Tensor = None  # type: ignore[assignment]
    guided: Tensor = None  # type: ignore[assignment]
    negative: Tensor = None  # type: ignore[assignment]
    trained: Tensor = None  # type: ignore[assignment]


def sds(e: EpsHat, eps: Tensor, z_t: Tensor, t: Tensor, schedule: NoiseSchedule, w: Tensor) -> Tensor:
    """`w (guided - eps)`: score distillation sampling (DreamFusion, arXiv 2209.14988)."""
    return w * (e.guided - eps)


def sjc(e: EpsHat, eps: Tensor, z_t: Tensor, t: Tensor, schedule: NoiseSchedule, w: Tensor) -> Tensor:
    """`guided - eps`: score Jacobian chaining (arXiv 2212.00774).

    That is `(y - D(z_s)) / s` at `z_s = y + s eps`, `s = sigma_t / alpha_t`.
    """
    return e.guided - eps


def sjc_plain(e: EpsHat, eps: Tensor, z_t: Tensor, t: Tensor, schedule: NoiseSchedule, w: Tensor) -> Tensor:
    """`guided`: `sjc` without the eps that reduces its variance; the same in expectation."""
    return e.guided


def vsd(e: EpsHat, eps: Tensor, z_t: Tensor, t: Tensor, schedule: NoiseSchedule, w: Tensor) -> Tensor:
    """`w (guided - trained)`: variational score distillation (ProlificDreamer, arXiv 2305.16213).

    With `w = alpha_t / sigma_t` it is the gradient in z of KL(generated || teacher's), both diffused to t: DMD without
    its normalizer, `alpha_t (s_trained - s_guided)` with `s = -eps_hat / sigma_t` (arXiv 2311.18828, eq. 7).
    """
    return w * (e.guided - e.trained)


def csd(e: EpsHat, eps: Tensor, z_t: Tensor, t: Tensor, schedule: NoiseSchedule, w: Tensor) -> Tensor:
    """`w (text - uncond)`: classifier score distillation (arXiv 2310.19415). It has no guidance scale."""
    return w * (e.text - e.uncond)


def nfsd(e: EpsHat, eps: Tensor, z_t: Tensor, t: Tensor, schedule: NoiseSchedule, w: Tensor) -> Tensor:
    """`w (d + s (text - uncond))`: noise-free score distillation (arXiv 2310.17590).

    d is `uncond` where t < 0.2 T and `uncond - negative` elsewhere, so all of it is `guided` there and
    `guided - negative` elsewhere.
    """
    early = (t < 0.2 * schedule.num_train_timesteps).view(-1, *[1] * (z_t.dim() - 1))
    return w * torch.where(early, e.guided, e.guided - e.negative)


def dmd(
    e: EpsHat, eps: Tensor, z_t: Tensor, t: Tensor, schedule: NoiseSchedule, w: Tensor, z: Tensor | None = None
) -> Tensor:
    """`(z_trained - z_guided) / mean|z - z_guided|`: distribution matching (arXiv 2311.18828, eq. 7 and 8).

    Each prediction as clean latents, `(z_t - sigma_t eps_hat) / alpha_t`; the mean is over the elements of a sample.
    It is DMD's `w alpha_t (s_trained - s_guided)`, `w = sigma_t^2 / (alpha_t^2 mean|z - z_guided|)`, as its code and
    DMD2's (arXiv 2405.14867) compute it; eq. 8 has one alpha_t more. `z` is what was noised, if it is at hand.
    """
    z = schedule.z_from("epsilon", z_t, eps, t) if z is None else z
    real, fake = schedule.z_from("epsilon", z_t, e.guided, t), schedule.z_from("epsilon", z_t, e.trained, t)
    return (fake - real) / (z - real).abs().flatten(1).mean(1).view(-1, *[1] * (z.dim() - 1))


def reconstruction(
    e: EpsHat, eps: Tensor, z_t: Tensor, t: Tensor, schedule: NoiseSchedule, w: Tensor, rescale: float = 0.5
) -> Tensor:
    """`z - (r (std(z_text) / std(z_guided)) + 1 - r) z_guided`: MVDream's loss of reconstruction (arXiv 2308.16512).

    That is `(sigma_t / alpha_t) (guided - eps)`, and for r > 0 what the rescaling of guidance adds (arXiv 2305.08891,
    section 3.4). The deviations are over all elements of a sample, so it is not linear in a draw.

    Args:
        e: predictions, see the module, `text` and `guided`; so are the next five.
        eps: (N, C, h, w).
        z_t: (N, C, h, w).
        t: (N,).
        schedule: of the teacher.
        w: unused.
        rescale: r.

    Returns:
        (N, C, h, w).
    """
    alpha, sigma = (x.to(eps.dtype).view(-1, *[1] * (eps.dim() - 1)) for x in (schedule.alpha(t), schedule.sigma(t)))
    f = sigma / alpha * (e.guided - eps)
    if rescale == 0:
        return f
    text, guided = (schedule.z_from("epsilon", z_t, x, t) for x in (e.text, e.guided))
    dims = tuple(range(1, eps.dim()))
    text_std, guided_std = (z.std(dims, keepdim=True) + 1e-8 for z in (text, guided))
    return f + rescale * (1 - text_std / guided_std) * guided


def hifa(
    e: EpsHat,
    eps: Tensor,
    z_t: Tensor,
    t: Tensor,
    schedule: NoiseSchedule,
    w: Tensor,
    images: Tensor,
    decode: Callable[[Tensor], Tensor],
) -> Tensor:
    """`w (x - decode(z_guided)) alpha_t / sigma_t`: the image-space loss of HiFA (arXiv 2305.18766).

    A second residual, to go with another: its gradient is that of the images.

    Args:
        e: predictions, see the module; so are the next five.
        eps: (N, C, h, w).
        z_t: (N, C, h, w).
        t: (N,).
        schedule: of the teacher.
        w: weights (N, 1, 1, 1).
        images: x (N, 3, H, W), the renders; under a trained score its own `decode(z_trained)` takes their place.
        decode: latents (N, C, h, w) -> images (N, 3, H, W).

    Returns:
        (N, 3, H, W).
    """
    alpha, sigma = (x.to(w.dtype).view(w.shape) for x in (schedule.alpha(t), schedule.sigma(t)))
    x = images if e.trained is None else decode(schedule.z_from("epsilon", z_t, e.trained, t))
    return w * (x - decode(schedule.z_from("epsilon", z_t, e.guided, t))) * alpha / sigma
