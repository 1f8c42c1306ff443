"""`prompt_processor_type: carv-stable-diffusion-prompt-processor`: threestudio's own, for `carv-tiny` too."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import threestudio
import torch
from threestudio.models.prompt_processors.base import hash_prompt
from threestudio.models.prompt_processors.stable_diffusion_prompt_processor import StableDiffusionPromptProcessor

from carv_3d.teachers.availability import BUILT_IN, resolve_model
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher


@threestudio.register("carv-stable-diffusion-prompt-processor")
class CarvStableDiffusionPromptProcessor(StableDiffusionPromptProcessor):
    @dataclass
    class Config(StableDiffusionPromptProcessor.Config):
        pass

    cfg: Config

    def configure(self, *args, **kwargs) -> None:
        name = self.cfg.pretrained_model_name_or_path
        if name in BUILT_IN:
            # threestudio's cache goes by path and prompt: it would outlive weights that came with an older release
            self.cfg.use_cache = False
            self.cfg.spawn = False  # a process of its own is for big text encoders
            self.spawn_func = save_embeddings
        # a folder in place of the name, checked before a process is spawned to read it
        self.cfg.pretrained_model_name_or_path = str(resolve_model(name))
        super().configure(*args, **kwargs)


def save_embeddings(folder: str, prompts: Sequence[str], cache_dir: str) -> None:
    """As threestudio's `spawn_func`, by carv_3d's reader, since older tokenizers do not know the file of newer ones."""
    for prompt, embedding in zip(prompts, StableDiffusionTeacher.load(folder, device="cpu").text_embeddings(prompts)):
        torch.save(embedding.clone(), os.path.join(cache_dir, f"{hash_prompt(folder, prompt)}.pt"))
