"""`guidance_type: carv-stable-diffusion-instructpix2pix-guidance`: an image is edited as the prompt says."""

from __future__ import annotations

from typing import Any

import threestudio
import torch

from carv_3d.guidance.cfg import Conditioning
from carv_3d.guidance.images import resized
from carv_3d.guidance.sds import GuidanceOptions
from carv_3d.teachers.instruct_pix2pix import InstructPix2PixTeacher

from .common import CarvGuidance, HostOptions, read_options, with_options
from .editing import EditingGuidance, EditingOptions


@threestudio.register("carv-stable-diffusion-instructpix2pix-guidance")
class CarvInstructPix2PixGuidance(EditingGuidance):
    """The objective and the edits of threestudio's `stable-diffusion-instructpix2pix-guidance`."""

    @with_options(
        GuidanceOptions,
        HostOptions,
        EditingOptions,
        without=("view_dependent_prompting", "pretrained_model_name_or_path", "model_config"),
        ddim_scheduler_name_or_path="CompVis/stable-diffusion-v1-4",
        ip2p_name_or_path=InstructPix2PixTeacher.default_model,
        guidance_scale=7.5,
    )
    class Config(CarvGuidance.Config):
        """threestudio's own defaults."""

    cfg: Config
    _name = "carv-stable-diffusion-instructpix2pix-guidance"

    def _guidance_options(self) -> Any:
        return read_options(GuidanceOptions, self.cfg, pretrained_model_name_or_path=self.cfg.ip2p_name_or_path)

    def _load(self, options: GuidanceOptions) -> Any:
        return InstructPix2PixTeacher.load(
            options.pretrained_model_name_or_path, with_text=False, cache_dir=self._own.cache_dir,
            **options.model_files, **self._loading(),
        )  # fmt: skip

    def _conditioning(
        self, text: torch.Tensor, uncond: torch.Tensor, image: torch.Tensor, size: tuple[int, int]
    ) -> Conditioning:
        latents = self._teacher.image_latents(resized(image, size))
        scale = torch.full((1,), float(self._own.condition_scale), device=latents.device)
        return Conditioning(text, uncond, image_cond=latents, image_scale=scale)
