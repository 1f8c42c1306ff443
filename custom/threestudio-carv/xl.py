"""`guidance_type: carv-stable-diffusion-xl-guidance` and the prompt processor that goes with it.

Stable Diffusion XL's pooled embedding travels as the last row of the text embeddings (carv_3d/teachers/xl_text.py), so
threestudio's prompt processors (views, Perp-Neg, cache) and the guidance's calls are what they are for one encoder.
"""

import os
from dataclasses import dataclass
from typing import Any

import threestudio
import torch
from threestudio.models.prompt_processors.base import PromptProcessor, hash_prompt

from carv_3d.teachers.availability import resolve_model
from carv_3d.teachers.families import STABLE_DIFFUSION_XL
from carv_3d.teachers.loading import choose_dtype
from carv_3d.teachers.stable_diffusion_xl import StableDiffusionXLTeacher
from carv_3d.teachers.xl_text import XLText

from .guidance import CarvStableDiffusionGuidance

DEFAULT_MODEL = StableDiffusionXLTeacher.default_model


@threestudio.register("carv-stable-diffusion-xl-guidance")
class CarvStableDiffusionXLGuidance(CarvStableDiffusionGuidance):
    """`carv-stable-diffusion-guidance` with another teacher; every option means the same."""

    @dataclass
    class Config(CarvStableDiffusionGuidance.Config):
        pretrained_model_name_or_path: str = DEFAULT_MODEL

    cfg: Config
    _teacher_class = StableDiffusionXLTeacher


@threestudio.register("carv-stable-diffusion-xl-prompt-processor")
class CarvStableDiffusionXLPromptProcessor(PromptProcessor):
    @dataclass
    class Config(PromptProcessor.Config):
        pretrained_model_name_or_path: str = DEFAULT_MODEL

    cfg: Config

    def configure(self, *args: Any, **kwargs: Any) -> None:
        # checked before a process is spawned to read it
        folder = resolve_model(self.cfg.pretrained_model_name_or_path, family=STABLE_DIFFUSION_XL)
        self.cfg.pretrained_model_name_or_path = str(folder)
        super().configure(*args, **kwargs)

    def prepare_text_embeddings(self) -> None:
        # threestudio's cache goes by model and prompt alone: what its own processor left there has one encoder's width
        self._cache_dir = os.path.join(self._cache_dir, "carv-xl")
        super().prepare_text_embeddings()

    @staticmethod
    def spawn_func(pretrained_model_name_or_path: str, prompts: list[str], cache_dir: str) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        text = XLText.load(pretrained_model_name_or_path, device, choose_dtype(device, None))
        for prompt, embedding in zip(prompts, text(prompts)):
            # cloned: a row of a tensor is saved with all of it
            file = os.path.join(cache_dir, f"{hash_prompt(pretrained_model_name_or_path, prompt)}.pt")
            torch.save(embedding.clone(), file)
