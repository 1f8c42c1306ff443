"""The request of `carv distill`, made into options and a folder; nothing is written here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from carv_3d.config.reader import read_options, read_words, to_mapping
from carv_3d.config.request import DistillRequest
from carv_3d.distill.options import DistillOptions
from carv_3d.distill.prompts import ListedPrompts, Prompts
from carv_3d.errors import CarvError
from carv_3d.io.files import expanded, slug
from carv_3d.io.structured import read_yaml
from carv_3d.runs.names import CONFIG
from carv_3d.runs.request import check_resumable, check_unchanged, new_folder, newest_folder

# What --resume may change: how long, what is shown and where, and what must be smaller or coarser where memory ran out.
CHANGEABLE = (
    "steps", "preview_every", "preview_prompts", "save_every", "logger", "max_batch", "device", "batch_size",
    "precision",
)  # fmt: skip


@dataclass
class Settings:
    """A run's model and options, as config.yaml holds them. `prompts_hash` shows a change of the prompts."""

    model: str
    options: DistillOptions
    prompts_hash: str = ""

    def to_yaml(self) -> str:
        """As config.yaml holds them; `read_settings` reads it back."""
        import yaml

        whole = {"model": self.model, "prompts_hash": self.prompts_hash, **to_mapping(self.options)}
        return str(yaml.safe_dump(whole, sort_keys=False))


def read_distill_options(
    overrides: Sequence[str], seed: int | None = None, base: DistillOptions | None = None
) -> DistillOptions:
    """The options of key=value words over `base` (the defaults); CarvError names what is unknown or out of range."""
    values = read_words(overrides, DistillOptions())
    if seed is not None:
        values["seed"] = seed
    return read_options(base or DistillOptions(), values)


def read_settings(folder: Path) -> Settings:
    """Of the run in the folder; CarvError where there is none that can be read."""
    check_resumable(folder)
    path = folder / CONFIG
    values = read_yaml(path, "begin again with another --out")
    if not isinstance(values.get("model"), str):
        raise CarvError(f"{path} is of no run of carv distill; name another folder")
    model, prompts_hash = values.pop("model"), str(values.pop("prompts_hash", ""))
    return Settings(model, read_options(DistillOptions(), values), prompts_hash)


def prompts_digest(prompts: Prompts) -> str:
    """Of the listed prompts; "" where there is no list."""
    if not isinstance(prompts, ListedPrompts):
        return ""
    return hashlib.sha256("\n".join(prompts.prompts).encode()).hexdigest()[:16]


def resolve(request: DistillRequest) -> tuple[Settings, Path]:
    """The settings and the folder of a request; nothing is written. Their local model and prompts are absolute paths.

    Raises:
        CarvError: a bad option, a folder that is in use, nothing to resume, or a resume that would change what is
            computed.
    """
    if not request.resume:
        assert request.model is not None  # the parser's check
        settings = _wherever(Settings(request.model, read_distill_options(request.overrides, request.seed)))
        return settings, new_folder(request.out, _default_folder(settings))
    folder = request.out or latest_folder(request)
    stored = read_settings(folder)
    options = read_distill_options(request.overrides, request.seed, stored.options)
    asked = Settings(request.model or stored.model, options)
    check_unchanged(folder, _compared(stored), _compared(asked), CHANGEABLE)
    options = replace(options, prompts=stored.options.prompts)
    return _wherever(Settings(stored.model, options, stored.prompts_hash)), folder


def _wherever(settings: Settings) -> Settings:
    """The same from whatever folder they are read: paths that are there become absolute; names stay as they are."""
    from carv_3d.teachers.families import BUILT_IN

    model, prompts = settings.model, settings.options.prompts
    if model not in BUILT_IN and expanded(model).is_dir():
        model = os.path.abspath(expanded(model))
    if prompts is not None and expanded(prompts).exists():
        prompts = os.path.abspath(expanded(prompts))
    return Settings(model, replace(settings.options, prompts=prompts), settings.prompts_hash)


def _compared(settings: Settings) -> dict[str, Any]:
    """Model and options as they are compared: two names of one place are the same."""
    absolute = _wherever(settings)
    values = {"model": absolute.model, **asdict(absolute.options)}
    for key in ("model", "prompts"):
        if os.path.isabs(values[key] or ""):
            values[key] = os.path.realpath(values[key])
    return values


def model_name(model: str) -> str:
    """The model's name without the folders that it lies in."""
    return model.rstrip("/").rpartition("/")[2]


def _default_folder(settings: Settings) -> Path:
    return Path("outputs") / f"distill-{slug(model_name(settings.model))}-{settings.options.seed}"


def latest_folder(request: DistillRequest) -> Path:
    """The newest of this model's default folders."""
    if request.model is None:
        raise CarvError("which run to resume is not said; name its folder with --out, or its model")
    settings = Settings(request.model, read_distill_options(request.overrides, request.seed))
    model = _compared(settings)["model"]
    return newest_folder(_default_folder(settings), lambda f: _compared(read_settings(f))["model"] == model)
