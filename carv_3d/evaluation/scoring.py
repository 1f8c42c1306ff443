"""What a judge that had no part in a run makes of its pictures. Optional: without one there is no score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from carv_3d.errors import CarvError

JUDGED_SIZE = 64  # pixels; the judge's pictures


def at_judged_size(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) as the judge takes them, (B, 3, 64, 64) float32 on the CPU."""
    pictures = pictures.float().cpu()
    if pictures.shape[-2:] == (JUDGED_SIZE, JUDGED_SIZE):
        return pictures
    return F.interpolate(pictures, (JUDGED_SIZE, JUDGED_SIZE), mode="bilinear", align_corners=False, antialias=True)


class PromptJudge:
    """The built-in judge and what it should see for one prompt."""

    def __init__(self, judge: Any, targets: dict[str, int], device: torch.device) -> None:
        """`judge` maps pictures (B, 3, 64, 64) to logits by name; `targets`: name -> the right class."""
        self.judge, self.targets, self.device = judge, targets, device

    @classmethod
    def for_prompt(cls, prompt: str, device: torch.device) -> PromptJudge | None:
        """A judge for `prompt`, or None where there is none or it does not know the prompt's words."""
        return cls.for_prompts([prompt], device)[0]

    @classmethod
    def for_prompts(cls, prompts: Sequence[str], device: torch.device) -> list[PromptJudge | None]:
        """As `for_prompt`, of each; they share one network."""
        targets = [_targets(prompt) for prompt in prompts]
        try:
            from carv_3d.tiny.classifier import Judge

            judge = Judge.load() if any(targets) else None
        except (ImportError, OSError, CarvError):
            judge = None
        return [cls(judge, own, device) if judge is not None and own else None for own in targets]

    @torch.no_grad()
    def score(self, views: Tensor) -> dict[str, float]:
        """Mean probability of the right answers over `views` (B, H, W, 3) in [0, 1], as judge_<name>."""
        logits = self.judge(at_judged_size(views.permute(0, 3, 1, 2)))
        return {
            f"judge_{name}": float(logits[name].softmax(dim=-1)[:, target].mean())
            for name, target in self.targets.items()
        }


def _targets(prompt: str) -> dict[str, int]:
    """The right class of each of the judge's questions; {} where it does not know the prompt's words."""
    try:
        from carv_3d.tiny import vocabulary

        object_name, colour, finish = vocabulary.parse(prompt)
    except (ImportError, OSError, CarvError):
        return {}
    targets = {"object": list(vocabulary.OBJECTS).index(object_name)}
    if colour is not None:
        targets["colour"] = list(vocabulary.COLOURS).index(colour)
    targets["finish"] = list(vocabulary.FINISHES).index(finish)
    return targets
