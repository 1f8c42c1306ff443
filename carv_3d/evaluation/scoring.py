"""What a classifier that had no part in a run makes of its images. Optional: without one there is no score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.guidance.images import resized

CLASSIFIER_SIZE = 64  # pixels; the classifier's images


def at_classifier_size(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) as the classifier takes them, (B, 3, 64, 64) float32 on the CPU."""
    return resized(images.float().cpu(), CLASSIFIER_SIZE, antialias=True)


class PromptClassifier:
    """The built-in classifier and what it should see for one prompt."""

    def __init__(self, classifier: Any, targets: dict[str, int], device: torch.device) -> None:
        """`classifier` maps images (B, 3, 64, 64) to logits by name; `targets`: name -> the right class."""
        self.classifier, self.targets, self.device = classifier, targets, device

    @classmethod
    def for_prompt(cls, prompt: str, device: torch.device) -> PromptClassifier | None:
        """A classifier for `prompt`, or None where there is none or it does not know the prompt's words."""
        return cls.for_prompts([prompt], device)[0]

    @classmethod
    def for_prompts(cls, prompts: Sequence[str], device: torch.device) -> list[PromptClassifier | None]:
        """As `for_prompt`, of each; they share one network."""
        targets = [_targets(prompt) for prompt in prompts]
        try:
            from carv_3d.tiny.classifier import Classifier

            classifier = Classifier.load() if any(targets) else None
        except (ImportError, OSError, CarvError):
            classifier = None
        return [cls(classifier, own, device) if classifier is not None and own else None for own in targets]

    @torch.no_grad()
    def score(self, views: Tensor) -> dict[str, float]:
        """Mean probability of the right answers over `views` (B, H, W, 3) in [0, 1], as classifier_<name>."""
        logits = self.classifier(at_classifier_size(views.permute(0, 3, 1, 2)))
        return {
            f"classifier_{name}": float(logits[name].softmax(dim=-1)[:, target].mean())
            for name, target in self.targets.items()
        }


def _targets(prompt: str) -> dict[str, int]:
    """The right class of each of the classifier's questions; {} where it does not know the prompt's words."""
    try:
        from carv_3d.tiny import vocabulary

        object_name, color, material = vocabulary.parse(prompt)
    except (ImportError, OSError, CarvError):
        return {}
    targets = {"object": list(vocabulary.OBJECTS).index(object_name)}
    if color is not None:
        targets["color"] = list(vocabulary.COLORS).index(color)
    targets["material"] = list(vocabulary.MATERIALS).index(material)
    return targets
