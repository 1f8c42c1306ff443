"""What is handed to torchmetrics for a CLIP score."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from carv_3d.evaluation import clip as clip_module
from carv_3d.evaluation.clip import ClipScore, usual_clip


class Mean:
    """In place of torchmetrics': the mean value of all images since the last reset."""

    def __init__(self) -> None:
        self.reset()
        self.prompts: list[str] = []

    def reset(self) -> None:
        self.images: list[Tensor] = []

    def update(self, images: list[Tensor], prompts: list[str]) -> None:
        self.images += images
        self.prompts += prompts

    def compute(self) -> Tensor:
        return torch.stack(self.images).float().mean()


def test_every_view_is_scored_with_the_prompt_as_bytes() -> None:
    clip = ClipScore.__new__(ClipScore)
    clip.metric, clip.device = Mean(), torch.device("cpu")
    dark, light = torch.full((2, 4, 6, 3), 0.2), torch.full((3, 4, 6, 3), 1.5)
    assert clip.score(dark, "a red mug") == 51.0
    assert [(tuple(image.shape), image.dtype) for image in clip.metric.images] == [((3, 4, 6), torch.uint8)] * 2
    assert clip.score(light, "a hat") == 255.0  # cut off, and nothing of the first is left
    assert clip.metric.prompts == ["a red mug"] * 2 + ["a hat"] * 3


def test_the_usual_clip_is_never_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torchmetrics")
    asked: list[Any] = []

    def load(model: str, **more: Any) -> None:
        asked.append((model, more))
        raise OSError("not here")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: "a file")
    monkeypatch.setattr(transformers.CLIPModel, "from_pretrained", load)
    assert usual_clip(torch.device("cpu"))[0] is None
    assert asked == [(clip_module.DEFAULT, {"local_files_only": True})]
