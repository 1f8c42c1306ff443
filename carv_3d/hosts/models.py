"""Withdrawn models in a configuration of threestudio, named before anything is built. No torch is imported here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from carv_3d.hosts.counterparts import COUNTERPARTS, MODEL, SD15
from carv_3d.teachers.withdrawn import GONE, out_of_reach

PROCESSOR = "prompt_processor"


def named_models(system: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Of a system's configuration: the dotted name of each option that names a model, and the model.

    Options of any group, whatever they are called, and the defaults of threestudio's guidance and prompt processors.
    """
    by_name = {counterpart.name: counterpart.models for counterpart in COUNTERPARTS.values()}
    stock = {name: counterpart.models for name, counterpart in COUNTERPARTS.items()}
    for key, kind in system.items():
        group = key.removesuffix("_type") if isinstance(key, str) else ""
        given = system.get(group) or {}
        if not isinstance(kind, str) or group == key or not isinstance(given, Mapping):
            continue
        defaults = by_name.get(kind) or stock.get(kind) or ({MODEL: SD15} if _reads_model(group, kind) else {})
        for name, value in {**defaults, **given}.items():
            if isinstance(value, str) and not (kind.startswith("dummy") or value.startswith("${")):
                yield f"{group}.{name}", value


def _reads_model(group: str, kind: str) -> bool:
    return group == PROCESSOR and kind.endswith("stable-diffusion-prompt-processor")


def withdrawn_sentence(system: Mapping[str, Any], folder: Path | None = None) -> str:
    """Which of a system's models are withdrawn and not on this machine, with the fix; empty if none is.

    Args:
        system: its configuration.
        folder: where relative paths begin; the working directory if None.
    """
    named = [(f"system.{name}", model) for name, model in named_models(system) if out_of_reach(model, folder)]
    if not named:
        return ""
    models = list(dict.fromkeys(model for _, model in named))
    when = ", ".join(f"{model} ({GONE[model][0]})" for model in models)
    words = " ".join(f"{name}={GONE[model][1]}" for name, model in named)
    return f"withdrawn from the hub, and not on this machine: {when}; add {words} (public mirrors), or local folders"
