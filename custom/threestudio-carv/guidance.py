"""`guidance_type: carv-stable-diffusion-guidance`: threestudio's calls to `carv_3d`'s guidance, and nothing more."""

from dataclasses import dataclass, field, replace
from typing import Any

import threestudio
import torch

from carv_3d.guidance.images import resized
from carv_3d.guidance.previews import denoised_previews
from carv_3d.guidance.sds import GuidanceOptions, SDSGuidance
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.teachers.timed import TimedTeacher

from .common import CarvGuidance, embeddings, preview_texts, read_options


@threestudio.register("carv-stable-diffusion-guidance")
class CarvStableDiffusionGuidance(CarvGuidance):
    @dataclass
    class Config(CarvGuidance.Config):
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

        # carv_3d's; each is explained in carv_3d/guidance/options.py
        num_draws: Any = 4
        proposal: str = "weight"
        stratify: str = "render"
        antithetic: bool = False
        max_batch: int = 16
        vae_sample: Any = True
        cfg_convention: str = "threestudio"
        use_recon_loss: bool = False
        seed: Any = None

    cfg: Config
    _teacher_class: Any = StableDiffusionTeacher

    def configure(self) -> None:
        super().configure()
        options = read_options(GuidanceOptions, self.cfg)  # checked before a model is loaded
        teacher = self._load_teacher(options)
        self._carv = SDSGuidance(TimedTeacher(teacher, self._meter), options)

    def _load_teacher(self, options: GuidanceOptions) -> Any:
        merging = dict(self.cfg.token_merging_params or {}) if self.cfg.token_merging else None
        return self._teacher_class.load(
            options.pretrained_model_name_or_path,
            token_merging=merging,
            with_text=False,
            **self._loading(),
        )

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
        epoch, step = self._begin(len(rgb))
        views = (elevation, azimuth, camera_distances, self.cfg.view_dependent_prompting)
        text, uncond, negatives = embeddings(prompt_utils, views)
        out = self._carv(rgb, text, uncond, step, epoch=epoch, rgb_as_latents=rgb_as_latents, negatives=negatives)
        losses = {"loss_sds": out.loss_sds, "loss_sds_img": out.loss_sds_img, "loss_recon": out.loss_recon}
        result: dict[str, Any] = {name: loss for name, loss in losses.items() if loss is not None}
        result.update(out.scalars)
        result["grad_norm"] = float(out.estimate.grad.norm())  # over the batch, as threestudio logs it
        result.update(self._costs())
        if guidance_eval:
            with self._meter.uncounted():
                shown = denoised_previews(self._carv, out, self.cfg.max_items_eval)
            shown["texts"] = preview_texts(shown["noise_levels"], elevation, azimuth, camera_distances)
            result["eval"] = shown
        return result

    def set_min_max_steps(self, min_step_percent: float = 0.02, max_step_percent: float = 0.98) -> None:
        """The range of timesteps from now on, for systems that set it themselves before each call."""
        options = self._carv.options
        if (options.min_step_percent, options.max_step_percent) != (min_step_percent, max_step_percent):
            given = {"min_step_percent": min_step_percent, "max_step_percent": max_step_percent}
            self._carv.options = replace(options, sqrt_anneal=False, **given)

    @torch.no_grad()
    def decode_latents(
        self, latents: torch.Tensor, latent_height: int | None = None, latent_width: int | None = None
    ) -> torch.Tensor:
        """Images (B, 3, H, W) in [0, 1] of latents (B, C, h, w), for systems that show what they render in latents.

        The latents are resized first: to latent_height and latent_width, or to the model's own size.
        """
        teacher = self._carv.teacher
        size = (latent_height or teacher.latent_size, latent_width or teacher.latent_size)
        return teacher.decode(resized(latents, *size))
