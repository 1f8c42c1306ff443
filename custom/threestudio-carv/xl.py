"""`guidance_type: carv-stable-diffusion-xl-guidance` and the prompt processor that goes with it.

Stable Diffusion XL's pooled embedding travels as the last row of the text embeddings (carv_3d/teachers/xl_text.py), so
threestudio's prompt processors (views, Perp-Neg, cache) and the guidance's calls are what they are for one encoder.
"""

import os

import threestudio
import torch
from threestudio.models.prompt_processors.base import PromptProcessor

from carv_3d.teachers.families import STABLE_DIFFUSION_XL
from carv_3d.teachers.loading import choose_dtype
from carv_3d.teachers.stable_diffusion_xl import StableDiffusionXLTeacher
from carv_3d.teachers.xl_text import XLText

from .common import with_options
from .guidance import CarvStableDiffusionGuidance
from .prompt_processor import ChecksModel, write_embeddings

DEFAULT_MODEL = StableDiffusionXLTeacher.default_model


@threestudio.register("carv-stable-diffusion-xl-guidance")
class CarvStableDiffusionXLGuidance(CarvStableDiffusionGuidance):
    """`carv-stable-diffusion-guidance` with another teacher; every option means the same."""

    @with_options(pretrained_model_name_or_path=DEFAULT_MODEL)
    class Config(CarvStableDiffusionGuidance.Config):
        """The same options, for another model."""

    cfg: Config
    _teacher_class = StableDiffusionXLTeacher


@threestudio.register("carv-stable-diffusion-xl-prompt-processor")
class CarvStableDiffusionXLPromptProcessor(ChecksModel, PromptProcessor):
    """Both text encoders, packed."""

    @with_options(pretrained_model_name_or_path=DEFAULT_MODEL)
    class Config(PromptProcessor.Config):
        """threestudio's own options, for another model."""

    cfg: Config
    _family = STABLE_DIFFUSION_XL

    def prepare_text_embeddings(self) -> None:
        """Keeps the cache apart: threestudio's goes by model and prompt, and its own processor has one encoder."""
        self._cache_dir = os.path.join(self._cache_dir, "carv-xl")
        super().prepare_text_embeddings()

    @staticmethod
    def spawn_func(pretrained_model_name_or_path: str, prompts: list[str], cache_dir: str) -> None:
        """Called by threestudio, in a process of its own, for prompts that are not in the cache."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        text = XLText.load(pretrained_model_name_or_path, device, choose_dtype(device, None))
        write_embeddings(pretrained_model_name_or_path, prompts, text(prompts), cache_dir)
