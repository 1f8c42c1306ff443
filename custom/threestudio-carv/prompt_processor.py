"""`prompt_processor_type: carv-stable-diffusion-prompt-processor`: threestudio's own, for `carv-tiny` too."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import threestudio
import torch
from threestudio.models.prompt_processors.base import hash_prompt
from threestudio.models.prompt_processors.stable_diffusion_prompt_processor import StableDiffusionPromptProcessor

from carv_3d.teachers.availability import resolve_model
from carv_3d.teachers.families import BUILT_IN, STABLE_DIFFUSION
from carv_3d.teachers.loading import fitted_prompt
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher


class ChecksModel:
    """Gives a prompt processor its model's folder, checked before a process is spawned to read it."""

    _family: Any = STABLE_DIFFUSION
    _longest = 2**30  # tokens of a prompt, where the text encoder has no limit of its own

    def configure(self, *args: Any, **kwargs: Any) -> None:
        """Puts the folder in place of the name."""
        folder = resolve_model(self.cfg.pretrained_model_name_or_path, family=self._family)
        self.cfg.pretrained_model_name_or_path = str(folder)
        super().configure(*args, **kwargs)

    def preprocess_prompt(self, prompt: str) -> str:
        """threestudio's, then cut where the words of a view would not fit: all cameras would have the same text."""
        prompt = super().preprocess_prompt(prompt)
        views = [direction.prompt("").strip() for direction in self.directions]
        endings = [view if view.startswith(",") else f" {view}" for view in views]
        return fitted_prompt(Path(self.cfg.pretrained_model_name_or_path), self._family, prompt, endings, self._longest)


@threestudio.register("carv-stable-diffusion-prompt-processor")
class CarvStableDiffusionPromptProcessor(ChecksModel, StableDiffusionPromptProcessor):
    """threestudio's, which reads `carv-tiny` from the package."""

    @dataclass
    class Config(StableDiffusionPromptProcessor.Config):
        """threestudio's own options."""

    cfg: Config

    def configure(self, *args: Any, **kwargs: Any) -> None:
        """Reads `carv-tiny` here and now."""
        if self.cfg.pretrained_model_name_or_path in BUILT_IN:
            # threestudio's cache goes by path and prompt: it would outlive weights that came with an older release
            self.cfg.use_cache = False
            self.cfg.spawn = False  # a process of its own is for big text encoders
            self.spawn_func = save_embeddings
        super().configure(*args, **kwargs)


def save_embeddings(folder: str, prompts: Sequence[str], cache_dir: str) -> None:
    """As threestudio's `spawn_func`, by carv_3d's reader, since older tokenizers do not know the file of newer ones."""
    teacher = StableDiffusionTeacher.load(folder, device="cpu")
    write_embeddings(folder, prompts, teacher.text_embeddings(prompts), cache_dir)


def write_embeddings(model: str, prompts: Sequence[str], embeddings: torch.Tensor, cache_dir: str) -> None:
    """A file for each prompt in threestudio's cache, from embeddings (B, L, D)."""
    for prompt, embedding in zip(prompts, embeddings):
        # cloned: a row of a tensor is saved with all of it
        torch.save(embedding.clone(), os.path.join(cache_dir, f"{hash_prompt(model, prompt)}.pt"))
