"""Score distillation via inversion (SDI, arXiv 2405.15891) on the same estimator.

    f = z - z_hat(z_t, t, y),    z_t the DDIM inversion of the render's latents z

The noise is no longer drawn, it is what the teacher finds in the render. Given t it would be fixed, but for two things.
The inversion ends at t + delta, delta uniform over one of its steps; z_t is then read as of t, as in threestudio.
And each of its steps adds `inversion_eta` of DDPM's noise. So what is random is t (unless `t_anneal` gives the one of
each step), delta, the noise of the steps and that of the encoder.

K draws of (t, delta, noise of the last step) share a render's chain. They take n + K predictions, where K inversions
would take K (n + 1). Each draw by itself has threestudio's distribution, so the gradient's expectation is the same. The
chain's own noise is shared, and K does not lower its part of the variance. Strata are of t and, in an order of their
own, of delta.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from carv_3d.core.arguments import checked
from carv_3d.core.batching import run_in_batches
from carv_3d.core.designs import rand
from carv_3d.core.estimator import Draws
from carv_3d.core.options import option
from carv_3d.errors import CarvError
from carv_3d.guidance.cfg import Conditioning, predict
from carv_3d.guidance.inversion import InversionGrid
from carv_3d.guidance.options import GuidanceOptions
from carv_3d.guidance.sds import SDSGuidance
from carv_3d.teachers.base import Teacher

WEIGHTING = "sigma_over_alpha"  # under which w (guided - eps) is z - z_hat


@dataclass(frozen=True, kw_only=True)
class SDIOptions(GuidanceOptions, defaults={"weighting_strategy": WEIGHTING, "trainer_max_steps": 10000}):
    """`GuidanceOptions`, and those of the inversion, under threestudio's names.

    Raises:
        CarvError: naming the option, for a value that cannot be meant.
    """

    enable_sdi: bool = option(True, "Noise by inversion of the render; false: drawn at random, as in sds.")
    inversion_guidance_scale: float = option(
        -7.5, "guidance_scale of the inversion's own predictions.", least=-1e6, most=1e6
    )
    inversion_n_steps: int = option(10, "Steps of an inversion over all timesteps.", least=1, most=1000)
    inversion_eta: float = option(0.3, "Share of DDPM's noise that each of its steps adds.", least=0, most=100)
    t_anneal: bool = option(
        True, "One timestep for all draws, from max_step_percent to min_step_percent in trainer_max_steps."
    )

    def __post_init__(self) -> None:
        unchanged = {"use_sjc": False, "use_img_loss": False, "objective": "sds", "grad_clip": None}
        for name, value in {**unchanged, "weighting_strategy": WEIGHTING}.items():
            if getattr(self, name) != value:
                raise CarvError(f"{name} is no part of score distillation via inversion: leave it out.")
        super().__post_init__()
        if self.sqrt_anneal and self.t_anneal:
            raise CarvError("sqrt_anneal and t_anneal are both true, and each names the timestep: set one to false.")
        refused = {"antithetic": True, "control_variate": True, "proposal": "adaptive", "vae_sample": "draw"}
        for name, value in refused.items():
            if self.enable_sdi and getattr(self, name) == value:
                raise CarvError(
                    f"{name}: {str(value).lower()} is for noise that is drawn, and inversion gives it here: leave it "
                    "out, or set enable_sdi to false."
                )

    def _progress(self, step: int) -> float | None:
        return min(max(step / self.trainer_max_steps, 0.0), 1.0) if self.t_anneal else super()._progress(step)


class SDIGuidance(SDSGuidance):
    """Score distillation via inversion of a teacher into whatever rendered the images.

    `loss_sds` has the gradient mean_k (z - z_hat), and the estimate's eps are such that add_noise(z, eps, t) is z_t.
    """

    options: SDIOptions
    _plans = True

    @checked
    def __init__(
        self,
        teacher: Teacher,
        options: SDIOptions | None = None,
        scheduler_config: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """Guidance by a teacher.

        Args:
            teacher: frozen.
            options: the defaults if None.
            scheduler_config: of the teacher, see `InversionGrid`; its defaults if None, without clip_sample.
            **more: options by name: SDIOptions', in place of those of `options`, or EstimatorOptions' (rank).

        Raises:
            CarvError: an option that does not exist, or values that do not fit.
        """
        super().__init__(teacher, options or SDIOptions(), **more)
        config = {"clip_sample": False} if scheduler_config is None else scheduler_config
        n = self.options.inversion_n_steps
        self.grid = InversionGrid.from_config(teacher.schedule, config, n) if self.options.enable_sdi else None

    def with_noise(self, noise: Tensor, step: int, epoch: int = 0) -> Draws:
        """Draws of which each has a noise (R, C, h, w) that is given, for `guide`."""
        self._at(step, epoch)
        draws = self.estimator.draw(noise, self.generator)
        return replace(draws, eps=noise[:, None].expand_as(draws.eps))

    def _draws(self, latents: Tensor, cond: Conditioning, generator: torch.Generator) -> Draws | None:
        draws = super()._draws(latents, cond, generator)
        if self.grid is None:
            return draws
        halves = 1 if draws is None else 2  # a measured step's draws are two independent groups
        draws = self.estimator.draw(latents, generator) if draws is None else draws
        with torch.no_grad():
            return self._inverted(self.grid, latents.detach(), cond, draws, halves, generator)

    def _inverted(
        self, grid: InversionGrid, z: Tensor, cond: Conditioning, draws: Draws, halves: int, generator: torch.Generator
    ) -> Draws:
        """The draws with the noise that the inversion finds; theirs becomes the noise of their own steps."""
        o, schedule = self.options, self.estimator.schedule
        R, K = draws.t.shape
        last = draws.t + self._delta(R, K, halves, generator).to(draws.t)
        last = last.clamp(max=schedule.num_train_timesteps - 1)
        s = cond.scale(o.inversion_guidance_scale, o.cfg_convention)

        def noise(x: Tensor) -> Tensor:
            return torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(x.device)

        def eps_hat(x: Tensor, t: int) -> Tensor:
            return self._eps_hat(grid, x, t, cond, s)

        z_t = grid.invert(z, draws.t, last, draws.eps, eps_hat, o.inversion_eta, noise)
        t = draws.t.flatten()
        alpha, sigma = (x.to(z).view(*draws.t.shape, 1, 1, 1) for x in (schedule.alpha(t), schedule.sigma(t)))
        return replace(draws, eps=(z_t - alpha * z[:, None]) / sigma)

    def _eps_hat(self, grid: InversionGrid, x: Tensor, t: int, cond: Conditioning, s: float) -> Tensor:
        """The teacher's noise in x (R, C, h, w). Where t is below 0 its network is given it as it is."""
        teacher: Any = self.teacher

        def eps_hat(x: Tensor, time: Tensor, *text: Tensor) -> Tensor:
            if t >= 0 or not hasattr(teacher, "predict"):
                return teacher.eps_hat(x, time.clamp_min(0), *text)  # type: ignore[no-any-return]
            return grid.eps_from(teacher.prediction_type, x, teacher.predict(x, time, *text), t)

        out, time = torch.empty_like(x), torch.full((len(x),), t, device=x.device)

        def batch(begin: int, end: int) -> Tensor:
            some = slice(begin, end)
            return predict(eps_hat, x[some], time[some], cond.samples(some), s, ("guided",)).guided

        self.estimator.max_batch = run_in_batches(batch, out, self.estimator.max_batch)
        return out

    def _delta(self, R: int, K: int, halves: int, generator: torch.Generator) -> Tensor:
        """(R, K) timesteps that an inversion goes beyond t: uniform on a step of the grid, in strata of their own."""
        T, n = self.estimator.schedule.num_train_timesteps, self.options.inversion_n_steps
        shape = (1, 1, R) if K == 1 else (R, halves, K // halves)
        u = rand(shape, generator, None)
        if self.options.stratify != "none":
            u = (rand(shape, generator, None).argsort(-1) + u) / shape[-1]
        return (u * T / n).floor().clamp(max=(T - 1) // n).long().view(R, K)
