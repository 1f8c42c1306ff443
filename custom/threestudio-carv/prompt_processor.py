"""`prompt_processor_type: carv-stable-diffusion-prompt-processor`: threestudio's own, for `carv-tiny` too."""

from __future__ import annotations

from dataclasses import dataclass

import threestudio
from threestudio.models.prompt_processors.stable_diffusion_prompt_processor import StableDiffusionPromptProcessor

from carv_3d.teachers.availability import resolve_model


@threestudio.register("carv-stable-diffusion-prompt-processor")
class CarvStableDiffusionPromptProcessor(StableDiffusionPromptProcessor):
    @dataclass
    class Config(StableDiffusionPromptProcessor.Config):
        pass

    cfg: Config

    def configure(self, *args, **kwargs) -> None:
        # a folder in place of the name, checked before a process is spawned to read it
        self.cfg.pretrained_model_name_or_path = str(resolve_model(self.cfg.pretrained_model_name_or_path))
        super().configure(*args, **kwargs)
