"""Estimators by name, such as `is+strat+antithetic`: words joined by +, over uniform and independent draws.

Every one of them keeps the objective; what it changes is the variance.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from carv_3d.errors import CarvError


class Word(NamedTuple):
    """A word of a name: the option that it sets, to what, and what that is."""

    option: str
    value: Any
    help: str


#: What a name without words stands for.
PLAIN: dict[str, Any] = {"proposal": "uniform", "stratify": "none", "antithetic": False, "control_variate": False}
WORDS: dict[str, Word] = {
    "uniform": Word("proposal", "uniform", "timesteps as the objective has them"),
    "is": Word("proposal", "weight", "importance sampling in proportion to w(t)"),
    "adaptive": Word("proposal", "adaptive", "in proportion to w(t) and the residual's size, as learnt"),
    "strat": Word("stratify", "render", "K strata in each render"),
    "global": Word("stratify", "global", "strata over all renders of a step"),
    "antithetic": Word("antithetic", True, "pairs with the same t and opposite noise"),
    "control": Word("control_variate", True, "a control variate on eps, of earlier steps; not with pairs"),
}
LAYOUT = ("strat", "global", "antithetic")  # words of how the draws are laid out


def estimator_options(name: str, words: Mapping[str, Word] = WORDS) -> dict[str, Any]:
    """The options that the words of a name set; `PLAIN` has the others.

    Args:
        name: words with "+" between them.
        words: those that there are.

    Raises:
        CarvError: a word that does not exist, with the nearest, or words that exclude each other.
    """
    said: dict[str, str] = {}
    for text in name.split("+"):
        if text not in words:
            near = difflib.get_close_matches(text, list(words), 1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(words)}"
            raise CarvError(f"there is no method {text!r} (in {name!r}); {hint}")
        option = words[text].option
        if option in said:
            raise CarvError(f"the method {name!r} says {said[option]} and {text}, which exclude each other.")
        said[option] = text
    if {"antithetic", "control_variate"} <= said.keys():
        raise CarvError(
            f"the method {name!r} has control on top of antithetic pairs, where it changes nothing: in a pair eps "
            "cancels by itself; leave one of them out."
        )
    return {option: words[text].value for option, text in said.items()}
