"""Modules under the names that they had before the packages: importable for one version, with a DeprecationWarning.

Loaded only when such a name is asked for, see the end of `carv_3d/__init__.py`.
"""

from __future__ import annotations

import importlib.util
import types
import warnings
from importlib.machinery import ModuleSpec
from typing import Any

# Old -> new, both below carv_3d; several where one was split.
MODULES = {
    "annealing": "config.annealing", "average": "core.ema", "backgrounds": "scenes.backgrounds",
    "charts": "report.charts", "checkpoint": "runs.checkpoint", "config": "generate.config", "devices": "core.devices",
    "doctor": "cli.doctor", "doctor_threestudio": "cli.doctor_threestudio", "dry_run": "generate.dry_run",
    "files": "io.files", "guidance_options": "guidance.options", "metrics": "io.tables", "options": "config.reader",
    "outputs": "io.images", "previews": "guidance.previews", "progress": "runs.progress",
    "report": "report.page io.tables", "request": "generate.request", "run": "generate.run",
    "scoring": "evaluation.scoring", "seeds": "core.seeds", "text_to_3d": "generate.trainer",
    "truth": "evaluation.truth", "view_text": "generate.view_text", "views": "scenes.view_phrases",
    "vsd": "guidance.vsd guidance.vsd_options", "vsd_options": "guidance.vsd_options",
    "attribution.cli": "cli.attribute", "attribution.pictures": "attribution.images attribution.folder_images",
    "compare.clip": "evaluation.clip",
    "core.accounting": "core.variance stats.bootstrap core.costs",
    "distill.cli": "cli.distill", "distill.metrics": "evaluation.distances",
    "teachers.lora_student": "teachers.lora_score", "teachers.perp_neg": "guidance.cfg",
    "teachers.sampling": "guidance.sampling", "teachers.tiny": "tiny", "teachers.tiny.judge": "tiny.classifier",
}  # fmt: skip
NAMES = {
    "LoraStudent": "LoraScore", "Judge": "Classifier", "TrainingPictures": "TrainingImages",
    "TinyPictures": "TinyImages", "FolderPictures": "FolderImages", "read_picture": "read_image",
    "sample_pictures": "sample_images", "fingerprint_of": "module_fingerprint", "loss_rows": "sample_losses",
}  # fmt: skip


class Moved(types.ModuleType):
    """A module that finds its names in others; its own loader."""

    @staticmethod
    def create_module(spec: ModuleSpec) -> Moved:
        """As `importlib.abc.Loader` has it."""
        return Moved(spec.name, f"Now {spec.loader_state}.")

    @staticmethod
    def exec_module(module: types.ModuleType) -> None:
        """Nothing is run: names are looked up when they are asked for."""
        _warn(module.__name__, module.__spec__.loader_state if module.__spec__ else "", 3)

    def __getattr__(self, name: str) -> Any:
        return attribute(self.__name__, name)


def spec(name: str) -> ModuleSpec | None:
    """The import machinery's answer for `carv_3d.<old>`; None where there was no such module."""
    home = _home(name)
    if not home:
        return None
    return ModuleSpec(name, Moved, loader_state=home, is_package=True)  # type: ignore[arg-type]


def attribute(module: str, name: str, warn: bool = False) -> Any:
    """What the old `module` called `name`. Raises AttributeError."""
    for new in [] if name.startswith("__") else _home(module).split():
        value = getattr(importlib.import_module(new), NAMES.get(name, name), None)
        if value is not None:
            if warn:
                _warn(f"{module}.{name}", f"{new}.{NAMES.get(name, name)}", 4)
            return value
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


def _home(name: str) -> str:
    """The new modules, in full; "" where there are none."""
    old = name.removeprefix("carv_3d.")
    package, _, last = old.rpartition(".")
    if old not in MODULES and package in MODULES:  # below a package that moved
        below = f"carv_3d.{MODULES[package]}.{last}"
        return below if importlib.util.find_spec(below) else ""
    return " ".join(f"carv_3d.{new}" for new in MODULES.get(old, "").split())


def _warn(old: str, new: str, level: int) -> None:
    words = f"{old} is now {new.replace(' ', ' and ')}; the old name goes with the next version."
    warnings.warn(words, DeprecationWarning, stacklevel=level)
