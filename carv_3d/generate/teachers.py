"""The models of several runs: each is loaded once."""

from __future__ import annotations

import functools
from typing import Any

from carv_3d.generate.trainer import load_teacher


class Teachers:
    """Each model once, however many runs follow it."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[Any, ...], Any] = {}
        self.warm = False

    def load(self, config: Any) -> Any:
        """The model of a configuration, loaded when it is first asked for."""
        options = config.system.guidance
        names = (options.pretrained_model_name_or_path, repr(options.model_files))
        key = (*names, config.device, options.half_precision_weights)
        if key not in self._loaded:
            self._loaded[key] = load_teacher(config)
        return self._loaded[key]


@functools.lru_cache(maxsize=1)
def process_teachers() -> Teachers:
    """Those of this process, for a worker that is given one task after another."""
    return Teachers()
