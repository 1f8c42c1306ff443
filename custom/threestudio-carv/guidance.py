"""`guidance_type: carv-stable-diffusion-guidance`: threestudio's calls to `carv_3d`'s guidance, and nothing more."""

from dataclasses import dataclass, field, fields
from typing import Any

import threestudio
import torch
from omegaconf import OmegaConf
from threestudio.utils.base import BaseObject

from carv_3d.core.costs import CostMeter
from carv_3d.errors import CarvError
from carv_3d.guidance import GuidanceOptions, SDSGuidance
from carv_3d.previews import denoised_previews
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.teachers.timed import TimedTeacher

MAX_BLIND_STEPS = 20


@threestudio.register("carv-stable-diffusion-guidance")
class CarvStableDiffusionGuidance(BaseObject):
    @dataclass
    class Config(BaseObject.Config):
        # threestudio's, with its names and defaults
        pretrained_model_name_or_path: str = "runwayml/stable-diffusion-v1-5"
        enable_memory_efficient_attention: bool = False
        enable_sequential_cpu_offload: bool = False
        enable_attention_slicing: bool = False
        enable_channels_last_format: bool = False
        guidance_scale: Any = 100.0
        grad_clip: Any = None
        half_precision_weights: bool = True
        min_step_percent: Any = 0.02
        max_step_percent: Any = 0.98
        sqrt_anneal: bool = False
        trainer_max_steps: int = 25000
        use_img_loss: bool = False
        use_sjc: bool = False
        var_red: bool = True
        weighting_strategy: str = "sds"
        token_merging: bool = False
        token_merging_params: Any = field(default_factory=dict)
        view_dependent_prompting: bool = True
        max_items_eval: int = 4

        # carv_3d's; each is explained in carv_3d/guidance_options.py
        num_draws: int = 4
        proposal: str = "weight"
        stratify: str = "render"
        antithetic: bool = False
        max_batch: int = 16
        vae_sample: Any = True
        cfg_convention: str = "threestudio"
        use_recon_loss: bool = False
        seed: Any = None

    cfg: Config

    def configure(self) -> None:
        cfg = OmegaConf.to_container(self.cfg, resolve=True)
        names = {one.name for one in fields(GuidanceOptions)}
        options = GuidanceOptions(**{k: v for k, v in cfg.items() if k in names})  # checked before a model is loaded
        teacher = StableDiffusionTeacher.load(
            options.pretrained_model_name_or_path,
            device=self.device,
            half_precision=options.half_precision_weights,
            channels_last=self.cfg.enable_channels_last_format,
            attention_slicing=self.cfg.enable_attention_slicing,
            cpu_offload=self.cfg.enable_sequential_cpu_offload,
            token_merging=cfg["token_merging_params"] or {} if self.cfg.token_merging else None,
            with_text=False,
        )
        if self.cfg.enable_memory_efficient_attention:
            threestudio.info("PyTorch 2 uses memory efficient attention by default.")
        # private, so that threestudio does not search them for modules to update
        self._meter = CostMeter(self.device)
        self._carv = SDSGuidance(TimedTeacher(teacher, self._meter), options, **_ranks())
        self._when, self._blind_steps = (0, 0), 0

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        self._when = (epoch, global_step)

    def __call__(
        self,
        rgb: torch.Tensor,
        prompt_utils: Any,
        elevation: torch.Tensor,
        azimuth: torch.Tensor,
        camera_distances: torch.Tensor,
        rgb_as_latents: bool = False,
        guidance_eval: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        epoch, step = self._when
        self._meter.seconds.clear()
        self._meter.count(renders=len(rgb))
        views = (elevation, azimuth, camera_distances, self.cfg.view_dependent_prompting)
        text, no_text, negatives = _embeddings(prompt_utils, views)
        out = self._carv(
            rgb, text, no_text, step, epoch=epoch, rgb_as_latents=rgb_as_latents, negatives=negatives
        )
        losses = {"loss_sds": out.loss_sds, "loss_sds_img": out.loss_sds_img, "loss_recon": out.loss_recon}
        result: dict[str, Any] = {name: loss for name, loss in losses.items() if loss is not None}
        result.update(out.scalars)
        result["grad_norm"] = float(out.estimate.grad.norm())  # over the batch, as threestudio logs it
        result.update(self._meter.as_scalars())
        self._count_blind(bool(out.estimate.finite.any()))
        if guidance_eval:
            result["eval"] = denoised_previews(self._carv, out, self.cfg.max_items_eval)
            result["eval"]["texts"] = [
                f"n{n:.02f}\ne{e:.01f}\na{a:.01f}\nc{c:.02f}"
                for n, e, a, c in zip(
                    result["eval"]["noise_levels"], elevation.tolist(), azimuth.tolist(), camera_distances.tolist()
                )
            ]
        return result

    def _count_blind(self, saw: bool) -> None:
        self._blind_steps = 0 if saw else self._blind_steps + 1
        if self._blind_steps >= MAX_BLIND_STEPS:
            raise CarvError(
                f"the diffusion model gave no finite prediction for {MAX_BLIND_STEPS} steps: lower the learning rate "
                "or guidance_scale, or set half_precision_weights=false; the last checkpoint is intact."
            )

    def carv_state(self) -> dict[str, Any]:
        """For the mixin `carv-checkpoint`: tensors and primitives."""
        return self._carv.state_dict()

    def load_carv_state(self, state: dict[str, Any]) -> None:
        self._carv.load_state_dict(state)


def _embeddings(prompt_utils: Any, views: tuple) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """(text (B, L, D), unconditional (B, L, D), None or Perp-Neg's (negatives (B, 2, L, D), weights (B, 2)))."""
    n = len(views[0])
    if not prompt_utils.use_perp_neg:
        text, no_text = prompt_utils.get_text_embeddings(*views).chunk(2)  # threestudio gives text first
        return text, no_text, None
    embeddings, weights = prompt_utils.get_text_embeddings_perp_neg(*views)
    negatives = embeddings[2 * n :].unflatten(0, (n, weights.shape[1]))  # interleaved by item
    return embeddings[:n], embeddings[n : 2 * n], (negatives, weights)


def _ranks() -> dict[str, int]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return {}
    return {"rank": torch.distributed.get_rank(), "world_size": torch.distributed.get_world_size()}
