"""`guidance_type: carv-stable-diffusion-guidance`: threestudio's calls to `carv_3d`'s guidance, and nothing more."""

from dataclasses import field
from typing import Any

import threestudio
import torch
import torch.nn.functional as F

from carv_3d.errors import CarvError
from carv_3d.guidance.sds import GuidanceOptions, SDSGuidance
from carv_3d.objectives.table import OBJECTIVES
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.teachers.timed import TimedTeacher

from .common import CarvGuidance, HostOptions, Texts, read_options, with_gradient, with_options


@threestudio.register("carv-stable-diffusion-guidance")
class CarvStableDiffusionGuidance(CarvGuidance):
    """The objective of threestudio's `stable-diffusion-guidance`, or another of `carv_3d`'s."""

    @with_options(
        GuidanceOptions,
        HostOptions,
        pretrained_model_name_or_path="runwayml/stable-diffusion-v1-5",
        cfg_convention="threestudio",
    )
    class Config(CarvGuidance.Config):
        """threestudio's own defaults, and the options that only a host has."""

        token_merging: bool = False
        token_merging_params: Any = field(default_factory=dict)
        max_items_eval: int = 4

    cfg: Config
    _teacher_class: Any = StableDiffusionTeacher

    def configure(self) -> None:
        """Loads the model once all options have been checked."""
        super().configure()
        self._load(read_options(GuidanceOptions, self.cfg))

    def _load(self, options: GuidanceOptions, kind: Any = SDSGuidance, **more: Any) -> None:
        needs_empty = "negative" in OBJECTIVES[options.objective].needs
        teacher = self._teacher_class.load(
            options.pretrained_model_name_or_path, with_text=needs_empty, **options.model_files, **self._loading()
        )
        self._empty = teacher.text_embeddings([""]) if needs_empty else None
        self._carv = kind(TimedTeacher(teacher, self._meter), options, **more)

    def _loading(self) -> dict[str, Any]:
        """The host's options of loading, with tokens merged where that is asked for."""
        merging = dict(self.cfg.token_merging_params or {}) if self.cfg.token_merging else None
        return {**super()._loading(), "token_merging": merging}

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
        """A step of `SDSGuidance`; rgb is (B, H, W, 3), the views are (B,)."""
        step, epoch = self._begin(len(rgb))
        views = (elevation, azimuth, camera_distances)
        texts, negative = self._with_empty(self._texts(prompt_utils, *views))
        out = self._carv(
            with_gradient(rgb), texts.text, texts.uncond, step, epoch=epoch, rgb_as_latents=rgb_as_latents,
            negatives=texts.negatives, prompts_negative=negative,
        )  # fmt: skip
        result = self._sds_result(out)
        return result | self._previews(out, *views) if guidance_eval else result

    def _with_empty(self, texts: Texts) -> tuple[Texts, torch.Tensor | None]:
        """The texts, and the negative prompt apart from them, for an objective that has the empty one as well."""
        if self._empty is None:
            return texts, None
        empty = self._empty.to(texts.uncond)
        if torch.allclose(texts.uncond, empty.expand_as(texts.uncond), atol=1e-2):
            raise CarvError(
                f"the objective {self._carv.options.objective} needs a negative prompt: set "
                "system.prompt_processor.negative_prompt, or take another objective."
            )
        return texts._replace(uncond=empty), texts.uncond

    @torch.no_grad()
    def decode_latents(
        self, latents: torch.Tensor, latent_height: int | None = None, latent_width: int | None = None
    ) -> torch.Tensor:
        """Images (B, 3, H, W) in [0, 1] of latents (B, C, h, w), for systems that show what they render in latents.

        The latents are resized first: to latent_height and latent_width, or to the model's own size.
        """
        teacher = self._carv.teacher
        size = (latent_height or teacher.latent_size, latent_width or teacher.latent_size)
        return teacher.decode(F.interpolate(latents, size, mode="bilinear", align_corners=False))
