"""What is known of a model besides its weights: its words, its training data, the shapes that it draws.

Of most models nothing is known. carv-tiny is recognized by its vocabulary. So a copy of its folder under another name,
and a model that was trained further from it, are treated alike.
"""

from __future__ import annotations

import functools
from pathlib import Path

from carv_3d.errors import CarvError
from carv_3d.io.files import expanded
from carv_3d.io.structured import read_json
from carv_3d.teachers.families import BUILT_IN

MAX_VOCABULARY = 2**16  # bytes; those of other models are far larger


class Knowledge:
    """Of a model of which nothing is known.

    Attributes:
        training_data: whether its captions and images can be made here.
        true_shapes: whether the objects that it draws are known as shapes.
    """

    training_data = False
    true_shapes = False

    def check_prompt(self, prompt: str, negative_prompt: str = "", with_view: bool = False) -> None:
        """CarvError where the model cannot know the words; with_view: the camera's direction will be appended."""


class TinyKnowledge(Knowledge):
    """Of carv-tiny."""

    training_data = True
    true_shapes = True

    def check_prompt(self, prompt: str, negative_prompt: str = "", with_view: bool = False) -> None:
        """CarvError for words that carv-tiny was not taught, or for more than one object, color or material."""
        from carv_3d.tiny import vocabulary

        vocabulary.check_prompt(prompt, vocabulary.VIEW_ROOM if with_view else 0)
        vocabulary.check_words(negative_prompt, "The negative prompt")


def model_knowledge(name_or_path: str) -> Knowledge:
    """What is known of a model, by its name or by what its folder holds."""
    name = str(name_or_path).strip()
    if name in BUILT_IN:
        return TinyKnowledge()
    try:
        words = _words(expanded(name))
        known = words is not None and words == _words(next(iter(BUILT_IN.values())))
    except CarvError:  # no such user, an unreadable file: loading it will say so
        known = False
    return TinyKnowledge() if known else Knowledge()


def _words(folder: Path) -> frozenset[str] | None:
    """The tokens of a model's folder; None where there are none, or too many to be carv-tiny's."""
    path = folder / "tokenizer" / "vocab.json"
    try:
        stat = path.stat()
    except (OSError, ValueError):  # ValueError: no name that a file could have
        return None
    return _read(path, stat.st_mtime_ns) if stat.st_size <= MAX_VOCABULARY else None


@functools.lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> frozenset[str]:
    return frozenset(read_json(path))
