"""`prompt_processor_type: carv-stable-diffusion-prompt-processor`: threestudio's own, for `carv-tiny` too."""

from __future__ import annotations

from dataclasses import dataclass

import threestudio
from threestudio.models.prompt_processors.stable_diffusion_prompt_processor import StableDiffusionPromptProcessor

from carv_3d.teachers.availability import BUILT_IN, resolve_model


@threestudio.register("carv-stable-diffusion-prompt-processor")
class CarvStableDiffusionPromptProcessor(StableDiffusionPromptProcessor):
    @dataclass
    class Config(StableDiffusionPromptProcessor.Config):
        pass

    cfg: Config

    def configure(self, *args, **kwargs) -> None:
        name = self.cfg.pretrained_model_name_or_path
        # threestudio's cache goes by path and prompt: it would outlive weights that came with an older release
        self.cfg.use_cache = self.cfg.use_cache and name not in BUILT_IN
        # a folder in place of the name, checked before a process is spawned to read it
        self.cfg.pretrained_model_name_or_path = str(resolve_model(name))
        super().configure(*args, **kwargs)
