"""Score distillation: renders in, a loss out whose gradient is the estimator's. One for every host.

    guidance = SDSGuidance(StableDiffusionTeacher.load("carv-tiny"), GuidanceOptions(num_draws=4))
    out = guidance(rgb, text, uncond, step)    # rgb (B, H, W, 3), embeddings (B, L, D)
    out.loss_sds.backward()

One encode and one backward per render whatever K is (arXiv 2605.21489, "reuse"); what a host has of its
own (prompt processors, batches, configs) stays in the host.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from carv_3d.config.annealing import annealed
from carv_3d.core.auto_draws import FIRST_K, AutoDraws
from carv_3d.core.costs import CostMeter
from carv_3d.core.estimator import CarvEstimator, Draws, Estimate, EstimatorOptions
from carv_3d.core.reduction import reduce_draws, surrogate_loss
from carv_3d.core.seeds import rank_seed
from carv_3d.errors import CarvError
from carv_3d.guidance.options import AUTO, GuidanceOptions
from carv_3d.guidance.perp_neg import perp_neg_eps_hat
from carv_3d.teachers.base import Teacher, effective_scale

__all__ = ["GuidanceOptions", "GuidanceOutput", "SDSGuidance"]

log = logging.getLogger(__name__)


@dataclass
class GuidanceOutput:
    """What one step of guidance gives.

    loss_sds: scalar; its gradient w.r.t. the latents is the mean over renders of the mean over draws of
        (p/q) w(t) (eps_hat - eps), and reaches the renders through the encoder. Its value means nothing.
    loss_recon: scalar, MSE(rgb, decode(encode(rgb))), or None if not asked for.
    loss_sds_img: scalar, see `GuidanceOptions.use_img_loss`, or None.
    scalars: for the log: the estimator's (see Estimate) and the annealed guidance_scale (as in
        uncond + s (text - uncond)), min_step, max_step and grad_clip of this step; with num_draws "auto" those of
        `AutoDraws.scalars` (K is then 16 or 32 in the steps that are measured).
    estimate: every draw, unreduced, for accounting.
    latents: (B, C, h, w), what the estimate is of, with autograd. With vae_sample "draw" each draw has its own: (B K,
        C, h, w), and the estimate is laid out as of B K renders with one draw each.
    cond, scale: what `SDSGuidance.eps_hat` was told, of each of these: text and no text (B, L, D), and
        Perp-Neg's; and the annealed option guidance_scale.
    """

    loss_sds: Tensor
    scalars: dict[str, float]
    estimate: Estimate
    latents: Tensor
    cond: tuple[Tensor, ...]
    scale: float
    loss_recon: Tensor | None = None
    loss_sds_img: Tensor | None = None


class SDSGuidance:
    """Score distillation of a teacher into whatever rendered the images.

    It is no torch module: nothing lands in a host's checkpoint unless the host saves `state_dict()`.
    """

    def __init__(self, teacher: Teacher, options: GuidanceOptions | None = None, **estimator: Any) -> None:
        """`estimator` goes to EstimatorOptions as it is (rank and world size, for one)."""
        self.teacher = teacher
        self.options = options or GuidanceOptions()
        low, high = self.options.timestep_range(teacher.schedule.num_train_timesteps, 0)
        K = self.options.num_draws
        self.estimator = CarvEstimator(
            teacher.schedule,
            EstimatorOptions(
                num_draws=FIRST_K if isinstance(K, str) else K,
                proposal=self.options.proposal,
                stratify=self.options.stratify,
                antithetic=self.options.antithetic,
                control_variate=self.options.control_variate,
                max_batch=self.options.max_batch,
                weighting=self.options.weighting,
                min_step=low,
                max_step=high,
                **estimator,
            ),
        )
        self.generator = torch.Generator(device=teacher.device)
        seed = self.options.seed
        self._seed = int(torch.randint(2**62, ())) if seed is None else seed
        self.generator.manual_seed(rank_seed(self._seed, self.estimator.options.rank))
        self.auto: AutoDraws | None = None
        if K == AUTO:
            self._refuse_ranks(self.estimator.options.world_size)
            self.estimator.meter = meter = CostMeter(teacher.device)
            design = self.estimator.design
            self.auto = AutoDraws(meter, design.group_size, design.stratify != "none", self._seed)

    def join_ranks(self, rank: int, world_size: int) -> None:
        """Share the strata out among processes that were not yet there when this was built; the noise is never shared.

        It may be called at every step, on every rank alike; nothing changes unless rank or world_size does.
        """
        now = self.estimator.options
        if (rank, world_size) == (now.rank, now.world_size):
            return
        if self.auto is not None:
            self._refuse_ranks(world_size)
        self.estimator.options = replace(now, rank=rank, world_size=world_size)
        if rank != now.rank:
            self.generator.manual_seed(rank_seed(self._seed, rank))

    @staticmethod
    def _refuse_ranks(world_size: int) -> None:
        if world_size > 1:
            raise CarvError(
                f"num_draws is {AUTO}, which measures one process, and there are {world_size}: set num_draws to a "
                "number."
            )

    def __call__(
        self,
        rgb: Tensor,
        prompts_cond: Tensor,
        prompts_uncond: Tensor,
        step: int,
        generator: torch.Generator | None = None,
        rgb_as_latents: bool = False,
        epoch: int = 0,
        negatives: tuple[Tensor, Tensor] | None = None,
        with_recon: bool | None = None,
        draws: Draws | None = None,
        against: Callable[..., Tensor] | None = None,
        against_cond: tuple[Tensor, ...] = (),
    ) -> GuidanceOutput:
        """One step.

        rgb: (B, H, W, 3) in [0, 1], differentiable; resized to the teacher's images if need be. With
            `rgb_as_latents` (B, H, W, C) scaled latents, resized to the teacher's latents.
        prompts_cond, prompts_uncond: (B, L, D), or (1, L, D) for all renders.
        step, epoch: where the schedules are; steps count from 0.
        generator: of noise, timesteps and posterior samples; the guidance's own unless given.
        negatives: Perp-Neg, as embeddings (B, M, L, D) and weights (B, M), the weights already negative. The
            scale is then guidance_scale itself, as in threestudio, whatever cfg_convention is.
        with_recon: whether to decode for `loss_recon`; options.use_recon_loss unless given.
        draws: explicit draws for the estimator, instead of drawing.
        against: what the teacher's prediction is held against in place of eps, a model of the renders (variational
            score distillation); against(z_t (N, ...), t (N,), *rows of against_cond) -> (N, ...).
        against_cond: tensors with B rows.
        Raises CarvError for shapes that do not fit the teacher.
        """
        options = self.options
        generator = generator or self.generator
        scale = annealed(options.guidance_scale, step, epoch)
        low, high = options.timestep_range(self.teacher.schedule.num_train_timesteps, step, epoch)
        self.estimator.set_range(low, high)
        latents, images = self._latents(rgb, generator, rgb_as_latents)
        n, each = images.shape[0], 1
        if options.vae_sample == "draw" and not rgb_as_latents:
            latents, draws, each = self._sample_each_draw(images, generator, draws)
        cond: tuple[Tensor, ...] = (_per_render("prompts_cond", prompts_cond, n, 3),)
        cond += (_per_render("prompts_uncond", prompts_uncond, n, 3),)
        if negatives is not None:
            cond += (_per_render("negatives", negatives[0], n, 4),)
            cond += (_per_render("the weights of negatives", negatives[1], n, 2),)
        cond = tuple(c.repeat_interleave(each, 0) for c in cond) if each > 1 else cond
        against_cond = tuple(c.repeat_interleave(each, 0) for c in against_cond) if each > 1 else against_cond

        if options.use_img_loss and rgb_as_latents:
            raise CarvError("use_img_loss needs images, and this render is latents: set it to false.")
        known = (*cond, *against_cond, *((images.detach(),) if options.use_img_loss else ()))

        def residual(z_t: Tensor, t: Tensor, eps: Tensor, *rows: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            schedule = self.estimator.schedule
            predicted = self.eps_hat(z_t, t, rows[: len(cond)], scale)
            other = eps if against is None else against(z_t, t, *rows[len(cond) : len(cond) + len(against_cond)])
            w, alpha, sigma = (
                x.to(eps.dtype).view(-1, 1, 1, 1)
                for x in (schedule.w(t, options.weighting), schedule.alpha(t), schedule.sigma(t))
            )
            f = w * (predicted - other) if options.var_red or not options.use_sjc else predicted
            if not options.use_img_loss:
                return f

            def image(noise: Tensor) -> Tensor:
                return self.teacher.decode((z_t - sigma * noise) / alpha)

            shown = rows[-1] if against is None else image(other)
            return f, w * (shown - image(predicted)) * alpha / sigma

        clip = None if options.grad_clip is None else annealed(options.grad_clip, step, epoch)
        K, auto = None, self.auto if draws is None else None
        if auto is not None:
            draws, K = auto.plan(self.estimator, latents, generator)
        estimate = self.estimator.estimate_residual(
            latents, residual, cond=known, generator=generator, draws=draws, num_draws=K, grad_clip=clip
        )
        scalars = dict(estimate.scalars)
        if auto is not None:
            auto.learn(latents, estimate)
            scalars.update(auto.scalars)
        scalars["guidance_scale"] = scale if negatives is not None else effective_scale(scale, options.cfg_convention)
        scalars.update(min_step=float(low), max_step=float(high))
        if each > 1:
            scalars["K"] = float(each)
        if clip is not None:
            scalars["grad_clip"] = clip
        output = GuidanceOutput(estimate.loss, scalars, estimate, latents, cond, scale)
        if estimate.extra is not None:
            _, finite, grad = reduce_draws(estimate.extra, estimate.weights, clip)
            output.loss_sds_img = surrogate_loss(images, grad)
            scalars["nonfinite_img"] = float((~finite).sum())
        if options.use_recon_loss if with_recon is None else with_recon:
            if rgb_as_latents:
                raise CarvError("loss_recon needs images, and this render is latents: set lambda_recon to 0.")
            output.loss_recon = F.mse_loss(images, self.teacher.decode(latents[::each], clamp=False))
        return output

    def eps_hat(self, z_t: Tensor, t: Tensor, cond: tuple[Tensor, ...], scale: float) -> Tensor:
        """The teacher's prediction under guidance: z_t (N, C, h, w), t (N,) -> (N, C, h, w).

        cond: text and no text (N, L, D), and with Perp-Neg the negatives (N, M, L, D) and weights (N, M).
        """
        text, uncond, *perp_neg = cond
        if perp_neg:
            negatives, weights = perp_neg
            return perp_neg_eps_hat(self.teacher, z_t, t, text, uncond, negatives, weights, scale)
        return self.teacher.eps_hat_cfg(z_t, t, text, uncond, scale, self.options.cfg_convention)

    def _latents(self, rgb: Tensor, generator: torch.Generator, rgb_as_latents: bool) -> tuple[Tensor, Tensor]:
        """(latents (B, C, h, w), the images or latents that were given, at the teacher's size)."""
        channels = self.teacher.latent_channels if rgb_as_latents else 3
        if rgb.dim() != 4 or rgb.shape[-1] != channels:
            kind = "latents" if rgb_as_latents else "images"
            raise CarvError(f"guidance takes {kind} (B, H, W, {channels}), not {tuple(rgb.shape)}.")
        images = rgb.permute(0, 3, 1, 2)
        size = self.teacher.latent_size if rgb_as_latents else self.teacher.image_size
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
        if rgb_as_latents:
            return images, images
        if self.options.vae_sample == "draw":
            return images, images  # encoded once the draws are known
        sample = self.options.vae_sample == "sample"
        return self.teacher.encode(images, generator=generator, sample=sample), images

    def _sample_each_draw(
        self, images: Tensor, generator: torch.Generator, draws: Draws | None
    ) -> tuple[Tensor, Draws, int]:
        """(latents (B K, C, h, w), their draws (B K, 1, ...), K) of images (B, 3, H, W): one encoding, K samples."""
        mean, std = self.teacher.posterior(images)
        draws = self.estimator.draw(mean, generator) if draws is None else draws
        K = draws.t.shape[1]
        mean, std = mean.repeat_interleave(K, 0), std.repeat_interleave(K, 0)
        xi = torch.randn(mean.shape, generator=generator, device=generator.device, dtype=mean.dtype).to(mean.device)
        weights = None if draws.weights is None else draws.weights.reshape(-1, 1)
        return mean + std * xi, Draws(draws.t.reshape(-1, 1), draws.eps.flatten(0, 1)[:, None], weights), K

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on as if it had not stopped: tensors and primitives only."""
        auto = {} if self.auto is None else {"auto": self.auto.state_dict()}
        return {
            "generator": self.generator.get_state(),
            "generator_device": self.generator.device.type,
            "rank": self.estimator.options.rank,
            "estimator": self.estimator.state_dict(),
            **auto,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back `state_dict`; a generator of another kind of device starts afresh, which is logged.

        Hosts save the state of one rank: the others go on from a random state derived from it, each its own.
        """
        self.estimator.load_state_dict(state["estimator"])
        if self.auto is not None and "auto" in state:  # absent where K was a number until now
            self.auto.load_state_dict(state["auto"])
        if state["generator_device"] == self.generator.device.type:
            self.generator.set_state(state["generator"].cpu())
            rank = self.estimator.options.rank
            if state.get("rank", 0) != rank:
                base = torch.randint(2**62, (), generator=self.generator, device=self.generator.device)
                self.generator.manual_seed(rank_seed(int(base), rank))
        else:
            log.warning(
                "the saved random state is of a %s generator and this one is on %s: the draws start afresh.",
                state["generator_device"],
                self.generator.device.type,
            )


def _per_render(name: str, value: Tensor, n: int, dims: int) -> Tensor:
    if value.dim() != dims or value.shape[0] not in (1, n):
        raise CarvError(f"{name} has shape {tuple(value.shape)}; it needs {dims} axes and {n} rows (or 1).")
    return value if value.shape[0] == n else value.expand(n, *value.shape[1:])
