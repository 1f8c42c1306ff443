"""The prompts that a generator is distilled on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Protocol

import torch

from carv_3d.errors import CarvError
from carv_3d.io import structured
from carv_3d.io.files import expanded
from carv_3d.tiny.knowledge import model_knowledge


class Prompts(Protocol):
    """Where prompts come from. bounded: whether there are few enough to remember each one's embedding."""

    bounded: bool

    def draw(self, n: int, generator: torch.Generator) -> list[str]:
        """Draw n prompts, independent of each other; every random number comes from `generator`."""
        ...

    def first(self, n: int, generator: torch.Generator) -> list[str]:
        """The n prompts for previews."""
        ...


class ListedPrompts:
    """Some prompts, each as likely as any other."""

    bounded = True

    def __init__(self, prompts: list[str]) -> None:
        self.prompts = prompts

    @classmethod
    def read(cls, path: Path) -> ListedPrompts:
        """One on each line of a text file, empty lines left out. CarvError where there is none."""
        return cls(structured.read_prompts(path))

    def draw(self, n: int, generator: torch.Generator) -> list[str]:
        """Draw n prompts at random, with replacement."""
        return [self.prompts[i] for i in torch.randint(len(self.prompts), (n,), generator=generator).tolist()]

    def first(self, n: int, generator: torch.Generator) -> list[str]:
        """The first n of the file, from the start again where it has fewer."""
        return [self.prompts[i % len(self.prompts)] for i in range(n)]


class TinyCaptions:
    """Captions as in carv-tiny's training: its objects in the colors, materials and views that it was shown."""

    bounded = False

    def __init__(self) -> None:
        from carv_3d.tiny.dataset import object_colors

        self._colors = object_colors()

    def draw(self, n: int, generator: torch.Generator) -> list[str]:
        """Draw n captions at random."""
        from carv_3d.tiny.dataset import draw_view
        from carv_3d.tiny.vocabulary import caption

        rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
        shots = [draw_view(rng, self._colors)[0] for _ in range(n)]
        return [caption(rng, s.obj, s.color, s.material, s.elevation, s.azimuth) for s in shots]

    def first(self, n: int, generator: torch.Generator) -> list[str]:
        """Captions at random: there is no first."""
        return self.draw(n, generator)


def read_prompts(path: str | None, model: str) -> Prompts:
    """The prompts of a file, or the model's own without one; CarvError where it has or knows none."""
    known = model_knowledge(model)
    if path is not None:
        listed = ListedPrompts.read(expanded(path))
        for prompt in listed.prompts:
            known.check_prompt(prompt)
        return listed
    if not known.training_data:
        raise CarvError(f"{model} has no prompts of its own: name a text file with one on each line, prompts=FILE")
    return TinyCaptions()
