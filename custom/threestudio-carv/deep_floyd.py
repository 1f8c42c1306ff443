"""`guidance_type: carv-deep-floyd-guidance` and the prompt processor that goes with it.

DeepFloyd IF works on pixels: renders are resized to the model's images (64), and nothing is encoded.
"""

import os
from pathlib import Path
from typing import Any

import threestudio
import torch
from threestudio.models.prompt_processors.base import PromptProcessor

from carv_3d.errors import CarvError
from carv_3d.guidance.sds import GuidanceOptions
from carv_3d.teachers.deepfloyd_if import TOKENS, DeepFloydTeacher, embed_prompts
from carv_3d.teachers.families import DEEPFLOYD_IF

from .common import CarvCalls, CarvGuidance, HostOptions, with_options
from .guidance import CarvStableDiffusionGuidance
from .prompt_processor import ChecksModel, write_embeddings

DEFAULT_MODEL = DeepFloydTeacher.default_model


@threestudio.register("carv-deep-floyd-guidance")
class CarvDeepFloydGuidance(CarvStableDiffusionGuidance):
    """The objective of threestudio's `deep-floyd-guidance`, or another of `carv_3d`'s."""

    @with_options(
        GuidanceOptions,
        HostOptions,
        pretrained_model_name_or_path=DEFAULT_MODEL,
        guidance_scale=20.0,
        enable_channels_last_format=True,
        cfg_convention="threestudio",
    )
    class Config(CarvGuidance.Config):
        """threestudio's own defaults; its UNet has no tokens to merge."""

        max_items_eval: int = 4

    cfg: Config
    _teacher_class = DeepFloydTeacher

    def _loading(self) -> dict[str, Any]:
        return CarvCalls._loading(self)

    def __call__(self, rgb: torch.Tensor, *args: Any, rgb_as_latents: bool = False, **kwargs: Any) -> dict[str, Any]:
        """A step of `SDSGuidance` with rgb (B, H, W, 3). Raises CarvError for latents."""
        if rgb_as_latents:
            raise CarvError(
                "carv-deep-floyd-guidance works on pixels, and this system renders latents: take a guidance of Stable "
                "Diffusion, such as carv-stable-diffusion-guidance."
            )
        return super().__call__(rgb, *args, **kwargs)


@threestudio.register("carv-deep-floyd-prompt-processor")
class CarvDeepFloydPromptProcessor(ChecksModel, PromptProcessor):
    """T5's text by transformers alone; threestudio's own needs bitsandbytes, CUDA and an older transformers."""

    @with_options(pretrained_model_name_or_path=DEFAULT_MODEL)
    class Config(PromptProcessor.Config):
        """threestudio's own options, for this model."""

    cfg: Config
    _family = DEEPFLOYD_IF
    _longest = TOKENS

    def prepare_text_embeddings(self) -> None:
        """Keeps the cache apart: threestudio's own does not write prompts in small letters, as the model's pipeline."""
        self._cache_dir = os.path.join(self._cache_dir, "carv-if")
        super().prepare_text_embeddings()

    @staticmethod
    def spawn_func(pretrained_model_name_or_path: str, prompts: list[str], cache_dir: str) -> None:
        """Called by threestudio, in a process of its own, for prompts that are not in the cache."""
        embeddings = embed_prompts(Path(pretrained_model_name_or_path), prompts)
        write_embeddings(pretrained_model_name_or_path, prompts, embeddings, cache_dir)
