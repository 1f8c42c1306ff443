"""CLIP score of an asset's views, where torchmetrics and a CLIP's weights are to be had."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from carv_3d.errors import CarvError, first_line, require

DEFAULT = "openai/clip-vit-base-patch16"


class ClipScore:
    """100 times the cosine between CLIP's embeddings of image and prompt, not below 0, as torchmetrics has it."""

    def __init__(self, model: str, device: torch.device, local_files_only: bool = False) -> None:
        """local_files_only: never ask the hub. Raises CarvError where torchmetrics or the weights are missing."""
        CLIPScore = require("torchmetrics.multimodal.clip_score", "compare", "a CLIP score").CLIPScore
        try:
            # as a callable: torchmetrics knows names on the hub alone, and transformers below 5
            self.metric: Any = CLIPScore(model_name_or_path=lambda: _load(model, local_files_only)).to(device)
        except Exception as error:  # the hub's and transformers' kinds are many
            raise CarvError(
                f"no CLIP could be loaded from {model} ({first_line(error)}); give a folder or a hub id that is here, "
                "or leave --clip out"
            ) from error
        self.device = device

    @torch.no_grad()
    def score(self, views: Tensor, prompt: str) -> float:
        """The mean over `views` (B, H, W, 3) in [0, 1]."""
        images = (views.permute(0, 3, 1, 2).clamp(0, 1) * 255).round().to(torch.uint8).to(self.device)
        self.metric.reset()
        self.metric.update(list(images), [prompt] * len(images))
        return float(self.metric.compute())


class _Features(torch.nn.Module):
    """A CLIP whose features are tensors on every release of transformers; from 5 on it returns them in an object."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return _tensor(self.model.get_image_features(pixel_values))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return _tensor(self.model.get_text_features(input_ids, attention_mask))


def _tensor(features: Any) -> Tensor:
    embedding: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return embedding


def _load(model: str, local_files_only: bool) -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPProcessor

    where = {"local_files_only": local_files_only}
    return _Features(CLIPModel.from_pretrained(model, **where)), CLIPProcessor.from_pretrained(model, **where)


def usual_clip(device: torch.device) -> tuple[ClipScore | None, str]:
    """The usual CLIP where all is on this machine already, and otherwise one sentence that says why there is none."""
    from huggingface_hub import try_to_load_from_cache

    try:
        require("torchmetrics", "compare", "it")
    except CarvError as error:
        return None, f"no CLIP score: {error}"
    names = ("model.safetensors", "pytorch_model.bin")
    if not any(isinstance(try_to_load_from_cache(DEFAULT, name), str) for name in names):
        return None, f"no CLIP score: {DEFAULT} is not on this machine (--clip MODEL takes another, or fetches it)"
    try:
        return ClipScore(DEFAULT, device, local_files_only=True), ""
    except CarvError as error:
        return None, f"no CLIP score: {error}"
