"""Estimators by name, such as `is+strat`: words joined by +, on top of uniform, independent draws.

Every one of them keeps the objective; what they change is the variance.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any

from carv_3d.errors import CarvError

# word -> (group of options, option, value, what it is)
WORDS: dict[str, tuple[str, str, Any, str]] = {
    "uniform": ("guidance", "proposal", "uniform", "timesteps as the objective has them"),
    "is": ("guidance", "proposal", "weight", "importance sampling in proportion to w(t)"),
    "adaptive": ("guidance", "proposal", "adaptive", "in proportion to w(t) and the residual's size, as learnt"),
    "strat": ("guidance", "stratify", "render", "K strata in each render"),
    "global": ("guidance", "stratify", "global", "strata over all renders of a step"),
    "antithetic": ("guidance", "antithetic", True, "pairs with the same t and opposite noise"),
    "control": ("guidance", "control_variate", True, "a control variate on eps, of earlier steps; not with pairs"),
    "vae": ("guidance", "vae_sample", "draw", "a posterior sample of the encoder for each draw"),
    "cameras": ("data", "camera_sampling", "low_discrepancy", "cameras spread evenly over R and over steps; R from 2"),
}
PLAIN: dict[str, dict[str, Any]] = {
    "guidance": {"proposal": "uniform", "stratify": "none", "antithetic": False, "control_variate": False},
    "data": {"camera_sampling": "random"},
}
DEFAULT = ("uniform", "is", "strat", "is+strat")
LEARNING = ("adaptive", "control")  # words of methods that need steps to learn from


@dataclass(frozen=True)
class Method:
    """One estimator: options over those of the run."""

    name: str
    guidance: dict[str, Any] = field(hash=False)
    data: dict[str, Any] = field(hash=False)

    @property
    def words(self) -> list[str]:
        """The parts of its name."""
        return self.name.split("+")

    @property
    def antithetic(self) -> bool:
        """Whether its draws come in pairs."""
        return "antithetic" in self.words

    @property
    def upstream(self) -> tuple[bool, bool]:
        """What changes the upstream part of the variance: (cameras in a sequence, a posterior sample per draw)."""
        return "cameras" in self.words, "vae" in self.words


def method(name: str) -> Method:
    """The method of that name; CarvError, with the nearest word, for one that does not exist."""
    options = {group: dict(values) for group, values in PLAIN.items()}
    said: dict[tuple[str, str], str] = {}
    for word in name.split("+"):
        if word not in WORDS:
            near = difflib.get_close_matches(word, list(WORDS), 1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(WORDS)}"
            raise CarvError(f"there is no method {word!r} (in {name!r}); {hint}")
        group, option, value, _ = WORDS[word]
        if (group, option) in said:
            raise CarvError(f"the method {name!r} says {said[group, option]} and {word}, which exclude each other.")
        said[group, option] = word
        options[group][option] = value
    if "antithetic" in name.split("+") and "control" in name.split("+"):
        raise CarvError(
            f"the method {name!r} has control on top of antithetic pairs, where it changes nothing: in a pair eps "
            "cancels by itself; leave one of them out."
        )
    return Method(name, options["guidance"], options["data"])
