"""Score distillation: renders in, a loss out whose gradient is the estimator's. One for every host.

    guidance = SDSGuidance(StableDiffusionTeacher.load("carv-tiny"), GuidanceOptions(num_draws=4))
    out = guidance(rgb, text, uncond, step)    # rgb (B, H, W, 3), embeddings (B, L, D)
    out.loss_sds.backward()

One encode and one backward per render whatever K is (arXiv 2605.21489, "reuse"); what a host has of its
own (prompt processors, batches, configs) stays in the host.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from carv_3d.core.arguments import checked, described
from carv_3d.core.auto_draws import FIRST_K, AutoDraws
from carv_3d.core.brief import Brief
from carv_3d.core.checks import FLOATS, check_gradient, check_keywords, takes_whole_state
from carv_3d.core.estimator import CarvEstimator, Draws, Estimate, EstimatorOptions
from carv_3d.core.non_finite import NonFiniteSteps
from carv_3d.core.reduction import reduce_draws, surrogate_loss
from carv_3d.core.seeds import rank_seed
from carv_3d.errors import CarvError
from carv_3d.guidance.cfg import Conditioning, predict
from carv_3d.guidance.checks import HIGHEST, LOWEST, check_renders, checked_size
from carv_3d.guidance.images import resized
from carv_3d.guidance.options import AUTO, Annealing, GuidanceOptions, with_keywords
from carv_3d.objectives.residuals import EpsHat
from carv_3d.teachers.base import Teacher

__all__ = ["Conditioning", "GuidanceOptions", "GuidanceOutput", "SDSGuidance"]

log = logging.getLogger(__name__)

TrainedEpsHat = Callable[[Tensor, Tensor, Conditioning], Tensor]  # (z_t (N, ...), t (N,), of N samples) -> (N, ...)

MIDDLE, REACH = (HIGHEST + LOWEST) / 2, (HIGHEST - LOWEST) / 2  # of the values of a render


@dataclass(repr=False)
class GuidanceOutput(Brief):
    """One step of guidance, of R renders with K draws each.

    Attributes:
        loss_sds: scalar; its gradient w.r.t. the latents is the mean over renders of the mean over draws of (p/q) f,
            and reaches the renders through the encoder. Its value means nothing.
        scalars: for the log: the estimator's (see Estimate) and the annealed guidance_scale (as in
            uncond + s (text - uncond)), min_step, max_step and grad_clip of this step; with num_draws "auto" those of
            `AutoDraws.scalars` (K is then 16 or 32 in the steps that are measured).
        estimate: every draw, unreduced (R, K, ...), for accounting.
        latents: (R, C, h, w), what the estimate is of, with autograd; with vae_sample "draw" each render's first draw.
        cond: of R renders, as `SDSGuidance.predict` takes it.
        scale: the s in uncond + s (text - uncond).
        loss_recon: scalar, MSE(rgb, decode(encode(rgb))), or None if not asked for.
        loss_sds_img: scalar, of the objective's residual in image space, or None where it has none.
    """

    brief = ("estimate", "scale")

    loss_sds: Tensor
    scalars: dict[str, float]
    estimate: Estimate
    latents: Tensor
    cond: Conditioning
    scale: float
    loss_recon: Tensor | None = None
    loss_sds_img: Tensor | None = None


class SDSGuidance(Brief):
    """Score distillation of a teacher into whatever rendered the images, under the objective that the options name.

    It is no torch module: nothing lands in a host's checkpoint unless the host saves `state_dict()`.
    """

    brief = ("options.objective", "teacher", "estimator")
    _plans = False  # whether `_draws` gives the draws of every step

    @checked
    def __init__(self, teacher: Teacher, options: GuidanceOptions | None = None, **more: Any) -> None:
        """Guidance by a teacher.

        Args:
            teacher: frozen.
            options: the defaults if None.
            **more: options by name: GuidanceOptions', in place of those of `options`, or EstimatorOptions' (rank).

        Raises:
            CarvError: an option that does not exist, or values that do not fit.
        """
        self.teacher, self._image_channels = teacher, getattr(teacher, "image_channels", 3)
        o, estimator = with_keywords("SDSGuidance", options or GuidanceOptions(), more)
        self.options = o
        self.objective = o.distilled
        self.weights = o.weights(teacher.schedule)
        now = o.at(teacher.schedule.num_train_timesteps, 0)
        self.estimator = CarvEstimator(
            teacher.schedule,
            EstimatorOptions(
                num_draws=FIRST_K if isinstance(o.num_draws, str) else o.num_draws,
                proposal=o.proposal,
                stratify=o.stratify,
                antithetic=o.antithetic,
                control_variate=o.control_variate,
                max_batch=o.max_batch,
                min_step=now.min_step,
                max_step=now.max_step,
                **estimator,
            ),
            weights=self.weights,
        )
        self.estimator.non_finite = NonFiniteSteps(
            "the diffusion model gave no finite prediction",
            "lower the learning rate or guidance_scale, or set half_precision_weights=false, and resume from a "
            "checkpoint of before",
        )
        self.generator = torch.Generator(device=teacher.device)
        self._seed = int(torch.randint(2**62, ())) if o.seed is None else o.seed
        self.generator.manual_seed(rank_seed(self._seed, self.estimator.options.rank))
        self.auto: AutoDraws | None = None
        if o.num_draws == AUTO:
            self._refuse_ranks(self.estimator.options.world_size)
            self.auto = AutoDraws(self.estimator, self._seed)

    def join_ranks(self, rank: int, world_size: int) -> None:
        """Share the strata out among processes that were not yet there when this was built; the noise is never shared.

        It may be called at every step, on every rank alike; nothing changes unless rank or world_size does.

        Args:
            rank: of this process, from 0.
            world_size: how many there are.

        Raises:
            CarvError: they are no ranks, or there are several processes with num_draws "auto".
        """
        now = self.estimator.options
        joined = replace(now, rank=rank, world_size=world_size)  # refuses what are no ranks
        if (joined.rank, joined.world_size) == (now.rank, now.world_size):
            return
        if self.auto is not None:
            self._refuse_ranks(world_size)
        self.estimator.options = joined
        if rank != now.rank:
            self.generator.manual_seed(rank_seed(self._seed, rank))

    @staticmethod
    def _refuse_ranks(world_size: int) -> None:
        if world_size > 1:
            raise CarvError(
                f"num_draws is {AUTO}, which measures one process, and there are {world_size}: set num_draws to a "
                "number."
            )

    @checked
    def __call__(
        self,
        rgb: Tensor,
        prompts_cond: Tensor,
        prompts_uncond: Tensor,
        step: int,
        *,
        negatives: tuple[Tensor, Tensor] | None = None,
        prompts_negative: Tensor | None = None,
        **more: Any,
    ) -> GuidanceOutput:
        """One step, see `guide` for what is not named here (`epoch`, `generator`, `rgb_as_latents`, ...).

        Args:
            rgb: (B, H, W, 3) in [0, 1].
            prompts_cond: (B, L, D), or (1, L, D) for all renders.
            prompts_uncond: the same.
            step: where the schedules are; steps count from 0.
            negatives: Perp-Neg, as embeddings (B, M, L, D) and weights (B, M), the weights already negative. The
                scale is then guidance_scale itself, as in threestudio, whatever cfg_convention is.
            prompts_negative: (B, L, D) or (1, L, D), for objectives that need a negative prompt.
            **more: of `guide`, by name.

        Raises:
            CarvError: see `guide`; renders without gradient, or a keyword that does not exist.
        """
        check_keywords("SDSGuidance", more, self.guide, self.__call__)
        instead = "take guide(...).estimate.grad for the gradient alone"
        check_gradient("rgb needs", rgb, f"render outside of torch.no_grad(), or {instead}")
        perp_neg = (None, None) if negatives is None else negatives
        return self.guide(rgb, Conditioning(prompts_cond, prompts_uncond, prompts_negative, *perp_neg), step, **more)

    def guide(
        self, rgb: Tensor, cond: Conditioning, step: int, *, epoch: int = 0, generator: torch.Generator | None = None,
        rgb_as_latents: bool = False, with_recon: bool | None = None, draws: Draws | None = None,
        trained: TrainedEpsHat | None = None, size: tuple[int, int] | None = None,
    ) -> GuidanceOutput:  # fmt: skip
        """One step.

        Args:
            rgb: (R, H, W, 3) in [0, 1], differentiable; resized if need be.
            cond: of R renders, or of 1 for all.
            step: where the schedules are; steps count from 0.
            epoch: the same, for schedules that count epochs.
            generator: of noise, timesteps and posterior samples; the guidance's own unless given.
            rgb_as_latents: `rgb` is (R, H, W, C) scaled latents, resized to the teacher's latents.
            with_recon: whether to decode for `loss_recon`; options.use_recon_loss unless given.
            draws: explicit draws for the estimator, instead of drawing.
            trained: the prediction of a model of the renders, for objectives that need one.
            size: (height, width) that is encoded (or of the latents that are given); the teacher's own unless given.

        Raises:
            CarvError: something that does not fit the teacher or cannot be meant (a step that is no whole number,
                renders far outside of [0, 1]), or that the objective needs and was not given.
        """
        o, generator = self.options, generator or self.generator
        for name, switch in (("with_recon", with_recon), ("rgb_as_latents", rgb_as_latents)):
            if not isinstance(switch, bool | None):  # a text such as 'no' would count as True
                raise CarvError(f"{name} is {described(switch)}; it must be True or False.")
        with_recon = o.use_recon_loss if with_recon is None else with_recon
        images = self._images(rgb, rgb_as_latents, with_recon, size if size is None else checked_size(size))
        self._check(cond, trained)
        now = self._at(step, epoch)
        cond = cond.per_render(len(images))._replace(images=images.detach() if self.objective.image else None)
        s, given = cond.scale(now.guidance_scale, o.cfg_convention), cond.tensors
        each, latents = 1, images
        if not rgb_as_latents and o.vae_sample == "draw":
            latents, draws, each = self._sample_each_draw(images, generator, draws)
        elif not rgb_as_latents:
            latents = self.teacher.encode(images, generator=generator, sample=o.vae_sample == "sample")
        auto = self.auto if draws is None else None
        if draws is None and (self._plans or auto is not None):
            draws = self._draws(latents, cond, generator)
        if each > 1:
            given = tuple(x.repeat_interleave(each, 0) for x in given)
        residual = partial(self._residual, cond, s, trained)
        estimate = self.estimator.estimate_residual(
            latents, residual, given, generator, draws=draws, grad_clip=now.grad_clip
        )
        if auto is not None:
            auto.learn(latents, estimate)
        scalars = dict(estimate.scalars) | ({} if auto is None else auto.scalars)
        scalars.update(guidance_scale=s, min_step=float(now.min_step), max_step=float(now.max_step))
        scalars |= {} if now.grad_clip is None else {"grad_clip": now.grad_clip}
        loss = estimate.loss
        if each > 1:
            scalars["K"] = float(each)
            latents, estimate = latents[::each], _by_render(estimate, each, self.estimator.design.group_size)
        output = GuidanceOutput(loss, scalars, estimate, latents, cond, s)
        if estimate.extra is not None:
            output.loss_sds_img = _image_loss(images, estimate, now.grad_clip, scalars)
        if with_recon:
            output.loss_recon = F.mse_loss(images, self.teacher.decode(latents, clamp=False))
        return output

    def predict(
        self, z_t: Tensor, t: Tensor, cond: Conditioning, s: float, needs: Sequence[str] = ("guided",)
    ) -> EpsHat:
        """The teacher's predictions, see `carv_3d.guidance.cfg.predict`.

        Args:
            z_t: (N, C, h, w).
            t: (N,) integers.
            cond: of N samples.
            s: the scale in `uncond + s (text - uncond)`.
            needs: fields of `EpsHat`.
        """
        return predict(self.teacher.eps_hat, z_t, t, cond, s, needs)

    def eps_hat(self, z_t: Tensor, t: Tensor, cond: tuple[Tensor, ...], scale: float) -> Tensor:
        """The teacher's prediction under guidance.

        Args:
            z_t: (N, C, h, w).
            t: (N,) integers.
            cond: fields of `Conditioning`, in order.
            scale: as the option guidance_scale has it.

        Returns:
            (N, C, h, w).
        """
        texts = Conditioning(*cond)
        return self.predict(z_t, t, texts, texts.scale(scale, self.options.cfg_convention)).guided

    def _draws(self, latents: Tensor, cond: Conditioning, generator: torch.Generator) -> Draws | None:
        """The draws of a step; None where the estimator draws them."""
        return None if self.auto is None else self.auto.plan(latents, generator)

    def _residual(
        self, cond: Conditioning, s: float, trained: TrainedEpsHat | None, z_t: Tensor, t: Tensor, eps: Tensor,
        *given: Tensor,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        """The objective of N samples: z_t, eps (N, C, h, w), t (N,), and what goes with each, laid out as `cond`."""
        objective, schedule = self.objective, self.estimator.schedule
        of = cond.filled(given)
        e = predict(self.teacher.eps_hat, z_t, t, of, s, objective.needs)
        if trained is not None:
            e = e._replace(trained=trained(z_t, t, of))
        w = self.weights[t].to(eps.dtype).view(-1, *[1] * (eps.dim() - 1))
        f: Tensor = objective.function(e, eps, z_t, t, schedule, w)
        if objective.image is None:
            return f
        return f, objective.image(e, eps, z_t, t, schedule, w, of.images, self.teacher.decode)

    def _check(self, cond: Conditioning, trained: TrainedEpsHat | None) -> None:
        """Raises CarvError unless all is there that the objective needs."""
        needs, name = self.objective.needs, self.options.objective
        if "negative" in needs and cond.negative is None:
            raise CarvError(f"the objective {name} needs prompts_negative, a negative prompt's embeddings (B, L, D).")
        if "trained" in needs and trained is None:
            raise CarvError(f"the objective {name} needs a trained score: use VSDGuidance, or another objective.")
        if "guided" not in needs and cond.perp_neg is not None:
            raise CarvError(f"the objective {name} has no guidance, so Perp-Neg's negatives would be ignored.")

    def _images(self, rgb: Tensor, rgb_as_latents: bool, with_recon: bool, size: tuple[int, int] | None) -> Tensor:
        """The images (R, 3, H, W) or latents (R, C, h, w) that were given, at `size` or the teacher's."""
        channels = self.teacher.latent_channels if rgb_as_latents else self._image_channels
        # a quick look; what is odd is looked at again, for its sentence
        usual = isinstance(rgb, Tensor) and rgb.dtype in FLOATS and rgb.dim() == 4 and rgb.shape[-1] == channels
        usual = usual and not rgb.is_meta and rgb.layout == torch.strided and rgb.numel() > 0
        if not usual or not (rgb_as_latents or float((rgb.detach() - MIDDLE).abs().max()) <= REACH):
            check_renders(rgb, channels, rgb_as_latents)
        if rgb_as_latents and self.objective.image is not None:
            raise CarvError("use_img_loss needs images, and this render is latents: set it to false.")
        if rgb_as_latents and with_recon:
            raise CarvError("loss_recon needs images, and this render is latents: set lambda_recon to 0.")
        own = self.teacher.latent_size if rgb_as_latents else self.teacher.image_size
        images = rgb.permute(0, 3, 1, 2)
        return images if images.shape[-2:] == (size or (own, own)) else resized(images, size or own)

    def _at(self, step: int, epoch: int) -> Annealing:
        """The annealed options, with the proposal's range set to theirs."""
        now = self.options.at(len(self.weights), step, epoch)
        self.estimator.proposal.set_range(now.min_step, now.max_step)
        return now

    def _sample_each_draw(
        self, images: Tensor, generator: torch.Generator, draws: Draws | None
    ) -> tuple[Tensor, Draws, int]:
        """(latents (R K, C, h, w), their draws (R K, 1, ...), K) of images (R, 3, H, W): one encoding, K samples."""
        mean, std = self.teacher.posterior(images)
        draws = self.estimator.draw(mean, generator) if draws is None else draws
        K = draws.t.shape[1]
        mean, std = mean.repeat_interleave(K, 0), std.repeat_interleave(K, 0)
        xi = torch.randn(mean.shape, generator=generator, device=generator.device, dtype=mean.dtype).to(mean.device)
        weights = None if draws.weights is None else draws.weights.reshape(-1, 1)
        return mean + std * xi, Draws(draws.t.reshape(-1, 1), draws.eps.flatten(0, 1)[:, None], weights), K

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to continue as if it had not stopped: tensors and primitives only."""
        auto = {} if self.auto is None else {"auto": self.auto.state_dict()}
        return {
            "generator": self.generator.get_state(),
            "generator_device": self.generator.device.type,
            "rank": self.estimator.options.rank,
            "estimator": self.estimator.state_dict(),
            **auto,
        }

    @takes_whole_state("SDSGuidance")
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back `state_dict`; a generator of another kind of device starts afresh, which is logged.

        Hosts save the state of one rank: the others continue from a random state derived from it, each its own.
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


def _image_loss(images: Tensor, estimate: Estimate, grad_clip: float | None, scalars: dict[str, float]) -> Tensor:
    """The surrogate loss of the second residual, whose gradient is that of the images; adds nonfinite_img."""
    assert estimate.extra is not None
    _, finite, grad = reduce_draws(estimate.extra, estimate.weights, grad_clip)
    scalars["nonfinite_img"] = float((~finite).sum())
    return surrogate_loss(images, grad)


def _by_render(estimate: Estimate, K: int, group_size: int) -> Estimate:
    """An estimate of R K latents with one draw each, as of R renders with K draws each."""
    names = ("residual", "weights", "t", "eps", "finite")
    by_draw = {name: getattr(estimate, name)[:, 0].unflatten(0, (-1, K)) for name in names}
    return replace(estimate, grad=estimate.grad.unflatten(0, (-1, K)).mean(1), group_size=group_size, **by_draw)
