"""Variational score distillation (ProlificDreamer, arXiv 2305.16213) on the same estimator.

    f = w(t) (eps_hat_teacher(z_t, t, y) - eps_hat_lora(z_t, t, y, camera))

The LoRA score is a model of the renders: a LoRA of a diffusion model, trained on them while they change. Both sides
share one render and one encode: K draws of (t, eps) for f, and K_lora draws of their own for the LoRA score.
At K = K_lora = 1 with the proposal "uniform" this is threestudio's stable-diffusion-vsd-guidance.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from carv_3d.config.annealing import annealed
from carv_3d.core.arguments import checked
from carv_3d.core.brief import Brief
from carv_3d.core.checks import check_keywords, takes_whole_state
from carv_3d.core.costs import CostMeter
from carv_3d.core.estimator import Draws
from carv_3d.errors import CarvError
from carv_3d.guidance.cfg import Conditioning, classifier_free
from carv_3d.guidance.options import with_keywords
from carv_3d.guidance.sds import GuidanceOutput, SDSGuidance
from carv_3d.guidance.vsd_options import VSDOptions
from carv_3d.objectives.score_matching import Score, ScoreGradients, ScoreMatching
from carv_3d.teachers.base import Teacher

__all__ = ["TrainedScore", "VSDGuidance", "VSDOptions", "VSDOutput"]

NO_CAMERA = 0.1  # the share of draws that lora_cfg_training trains without camera, as in threestudio


class TrainedScore(Score, Protocol):
    """The trained model of the renders; `teachers.lora_score.LoraScore` is one.

    Its conditions are text (N, L, D) and camera (N, W), W as of `VSDOptions.camera_width`; a camera of zeros stands
    for none.
    """

    def eps_hat(self, z_t: Tensor, t: Tensor, /, *condition: Tensor) -> Tensor:
        """(N, C, h, w), t (N,) and the conditions -> the noise prediction (N, C, h, w)."""
        ...


@dataclass(repr=False)
class VSDOutput(Brief):
    """What one step gives.

    Attributes:
        loss_vsd: scalar; its gradient w.r.t. the latents is the mean over renders and draws of (p/q) f, and it has no
            other. Its value means nothing.
        loss_lora: scalar, the mean squared error of the LoRA score on this step's draws; differentiable in the LoRA
            score's parameters and in nothing else.
        sds: the step as `SDSGuidance` gives it, every draw of f unreduced among it.
        scalars: sds.scalars, guidance_scale_lora, K_lora, and nonfinite_lora, the draws that did not train the LoRA
            score.
    """

    brief = ("sds",)

    loss_vsd: Tensor
    loss_lora: Tensor
    sds: GuidanceOutput
    scalars: dict[str, float]

    @property
    def loss_vsd_img(self) -> Tensor | None:
        """See `GuidanceOptions.use_img_loss`; the LoRA score's image takes the place of the render."""
        return self.sds.loss_sds_img


class VSDGuidance(Brief):
    """Variational score distillation of a teacher into whatever rendered the images.

    It is no torch module: the host trains `lora_score.parameters()`, and saves them with its own.
    """

    brief = ("sds", "lora_score")

    @checked
    def __init__(
        self,
        teacher: Teacher,
        lora_score: TrainedScore,
        options: VSDOptions | None = None,
        meter: CostMeter | None = None,
        **more: Any,
    ) -> None:
        """Guidance by a teacher and a LoRA score.

        Args:
            teacher: frozen.
            lora_score: the trained model of the renders, on the teacher's latents.
            options: the defaults if None.
            meter: gets the seconds and NFE of the LoRA score (the teacher's come from `TimedTeacher`).
            **more: options by name: VSDOptions', in place of those of `options`, or EstimatorOptions' (rank).

        Raises:
            CarvError: an option that does not exist, or values that do not fit.
        """
        self.options, estimator = with_keywords("VSDGuidance", options or VSDOptions(), more)
        self.lora_score, self.meter = lora_score, meter
        W, width = self.options.camera_width, getattr(getattr(lora_score, "lora", None), "camera_width", None)
        if width not in (None, W):
            kind = self.options.camera_condition_type
            raise CarvError(
                f"camera_condition_type {kind} has {W} numbers and the LoRA score takes {width}: make it with "
                f"camera_width={W}."
            )
        self.sds = SDSGuidance(teacher, self.options, **estimator)
        o = self.options
        self.training = ScoreMatching(
            lora_score, o.lora_n_timestamp_samples, o.stratify, o.antithetic, o.lora_max_batch, **estimator
        )

    @checked
    def __call__(
        self,
        rgb: Tensor,
        prompts_cond: Tensor,
        prompts_uncond: Tensor,
        prompts_lora: Tensor,
        camera: Tensor,
        step: int,
        epoch: int = 0,
        lora_draws: Draws | None = None,
        negatives: tuple[Tensor, Tensor] | None = None,
        **more: Any,
    ) -> VSDOutput:
        """One step.

        Args:
            rgb: (B, H, W, 3) in [0, 1], differentiable; without gradient the LoRA score alone is trained.
            prompts_cond: (B, L, D), or (1, L, D) for all renders.
            prompts_uncond: the same.
            prompts_lora: (B, L, D) or (1, L, D), the LoRA score's text, the same from every side.
            camera: (B, 4, 4) or (B, W), W as of `VSDOptions.camera_width`.
            step: where the schedules are; steps count from 0.
            epoch: the same, for schedules that count epochs.
            lora_draws: explicit draws for the LoRA score's training, instead of drawing.
            negatives: Perp-Neg, see `SDSGuidance.__call__`.
            **more: of `SDSGuidance.guide`, by name.

        Raises:
            CarvError: shapes that do not fit, or a keyword that does not exist.
        """
        check_keywords("VSDGuidance", more, self.sds.guide, self.__call__)
        R, W = len(rgb), self.options.camera_width
        scale = annealed(self.options.guidance_scale_lora, step, epoch)
        camera = camera.detach().float().flatten(min(1, camera.dim() - 1))
        if camera.shape != (R, W) or prompts_lora.dim() != 3 or len(prompts_lora) not in (1, R):
            raise CarvError(
                f"camera has shape {tuple(camera.shape)} and prompts_lora {tuple(prompts_lora.shape)}; "
                f"{R} renders need ({R}, {W}) and ({R}, L, D)."
            )
        text = prompts_lora.expand(R, -1, -1)

        def trained(z_t: Tensor, t: Tensor, of: Conditioning) -> Tensor:
            assert of.trained_text is not None
            assert of.camera is not None
            return self.lora_eps_hat(z_t, t, of.trained_text, of.camera, scale)

        cond = Conditioning(prompts_cond, prompts_uncond, trained_text=text, camera=camera)
        if negatives is not None:
            cond = cond._replace(perp_neg=negatives[0], perp_neg_weights=negatives[1])
        out = self.sds.guide(rgb, cond, step, epoch=epoch, trained=trained, **more)
        generator = more.get("generator") or self.sds.generator
        lora = self._train(out.latents.detach(), text, camera, generator, lora_draws)
        scalars = {
            **out.scalars,
            "guidance_scale_lora": scale,
            "K_lora": float(self.training.estimator.options.num_draws),
            "nonfinite_lora": float((~lora.finite).sum()),
        }
        return VSDOutput(out.loss_sds, lora.loss(), out, scalars)

    def lora_eps_hat(self, z_t: Tensor, t: Tensor, text: Tensor, camera: Tensor, scale: float) -> Tensor:
        """`none + s (camera - none)`, see `classifier_free`.

        Args:
            z_t: (N, C, h, w).
            t: (N,) integers.
            text: (N, L, D).
            camera: (N, W).
            scale: s.

        Returns:
            (N, C, h, w).
        """
        none = torch.zeros_like(camera)
        scale = scale if camera.shape[1] else 1.0  # both are the same
        with self._timed("denoise", len(z_t) * (1 if scale in (0.0, 1.0) else 2)):
            return classifier_free(self.lora_score.eps_hat, z_t, t, (text, camera), (text, none), scale)

    def _train(
        self, latents: Tensor, text: Tensor, camera: Tensor, generator: torch.Generator, draws: Draws | None
    ) -> ScoreGradients:
        """The gradient of the LoRA score's loss on latents (R, C, h, w); some of the draws see no camera."""
        draws = self.training.draw(latents, generator) if draws is None else draws
        camera = camera.repeat_interleave(draws.t.shape[1], dim=0)
        if self.options.lora_cfg_training:
            without = torch.rand(len(camera), generator=generator, device=generator.device) < NO_CAMERA
            camera = camera.masked_fill(without.to(camera.device)[:, None], 0.0)
        with self._timed("train_lora", len(camera)):
            return self.training.gradients(latents, draws, (text, camera))

    @contextlib.contextmanager
    def _timed(self, phase: str, samples: int) -> Iterator[None]:
        if self.meter is None:
            yield
            return
        with self.meter.phase(phase):
            yield
        self.meter.count(nfe=samples)  # after it succeeded: a batch that ran out of memory is tried again

    def join_ranks(self, rank: int, world_size: int) -> None:
        """See `SDSGuidance.join_ranks`.

        Args:
            rank: of this process, from 0.
            world_size: how many there are.

        Raises:
            CarvError: several processes with num_draws "auto".
        """
        self.sds.join_ranks(rank, world_size)
        self.training.join_ranks(rank, world_size)

    def state_dict(self) -> dict[str, Any]:
        """As `SDSGuidance.state_dict`: tensors and primitives, without the LoRA score's parameters."""
        return {**self.sds.state_dict(), "training": self.training.estimator.state_dict()}

    @takes_whole_state("VSDGuidance")
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back `state_dict`, see `SDSGuidance.load_state_dict`."""
        self.sds.load_state_dict(state)
        self.training.estimator.load_state_dict(state["training"])
