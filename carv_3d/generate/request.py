"""What `carv generate` was asked for, made into a configuration and a folder; nothing is written here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from carv_3d.config.reader import to_mapping
from carv_3d.config.request import GenerateRequest
from carv_3d.generate.config import Config, load_config, load_run, settled
from carv_3d.io.files import slug
from carv_3d.runs.names import CONFIG
from carv_3d.runs.request import check_resumable, check_unchanged, is_changeable, new_folder, newest_folder

# What --resume may change: how long, what is shown and where, but not what is being computed.
CHANGEABLE = (
    "trainer.",
    "checkpoint.",
    "system.exporter.",
    "device",
    "logger",
    "data.eval_",
    "data.n_test_views",
    "system.renderer.eval_chunk_rays",
    "system.guidance.max_batch",
)


def resolve(request: GenerateRequest) -> tuple[Config, Path]:
    """The configuration and the folder of a request; nothing is written.

    Raises:
        CarvError: a bad option, a folder that is in use, nothing to resume, or a resume that would change
            what is computed.
    """
    if not request.resume:
        config = load_config(request.config, request.overrides, request.prompt, request.seed)
        return config, new_folder(request.out, _default_folder(config))
    folder = request.out or _latest_folder(request)
    check_resumable(folder)
    stored = load_run(folder)
    values = to_mapping(stored)

    def asked(*overrides: str) -> Config:
        base = request.config or folder / CONFIG
        own = [f"seed={stored.seed}", f"system.prompt_processor.prompt={stored.prompt}"]  # not the file's
        return load_config(base, [*own, *request.overrides, *overrides], request.prompt, request.seed)

    # Compared with all that may change as the run has it: an option that follows from such a one is not changed.
    new = settled(asked(*_changeable(values)), stored.system.geometry_type)
    begun = settled(stored, stored.system.geometry_type)
    check_unchanged(folder, to_mapping(begun), to_mapping(new), CHANGEABLE)
    return load_run(folder, _changeable(to_mapping(asked()))), folder


def _changeable(values: Mapping[str, Any], path: str = "") -> list[str]:
    """The options that --resume may change, as key=value."""
    words: list[str] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            words += _changeable(value, f"{path}{key}.")
        elif is_changeable(f"{path}{key}", CHANGEABLE):
            words.append(f"{path}{key}={json.dumps(value)}")
    return words


def _default_folder(config: Config) -> Path:
    return Path("outputs") / f"{slug(config.prompt)}-{config.seed}"


def _latest_folder(request: GenerateRequest) -> Path:
    """The newest of this prompt's default folders; other prompts may have the same names of folders."""
    config = load_config(request.config, request.overrides, request.prompt, request.seed)
    return newest_folder(_default_folder(config), lambda f: load_run(f).prompt == config.prompt)
