"""One way from a model's name to its teacher, whatever the family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from carv_3d.core.arguments import checked
from carv_3d.core.memory import collection_paused
from carv_3d.errors import CarvError, packages
from carv_3d.io.files import open_file
from carv_3d.io.structured import RESTORE
from carv_3d.teachers.deepfloyd_if import DeepFloydTeacher
from carv_3d.teachers.families import FAMILIES, Family
from carv_3d.teachers.flux import FluxTeacher
from carv_3d.teachers.latent_diffusion import LatentDiffusionTeacher
from carv_3d.teachers.model_folder import WrongFamily
from carv_3d.teachers.pixart import PixArtTeacher
from carv_3d.teachers.sana import SanaTeacher
from carv_3d.teachers.single_file import find_folder
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.teachers.stable_diffusion_3 import StableDiffusion3Teacher
from carv_3d.teachers.stable_diffusion_xl import StableDiffusionXLTeacher

TEACHERS: tuple[type[LatentDiffusionTeacher], ...] = (
    StableDiffusionTeacher,
    StableDiffusionXLTeacher,
    StableDiffusion3Teacher,
    FluxTeacher,
    PixArtTeacher,
    SanaTeacher,
    DeepFloydTeacher,
)


@checked
def find_model(
    name_or_path: str,
    local_files_only: bool = False,
    cache_dir: str | None = None,
    *,
    only: Family | None = None,
    use: str = "",
    model_config: str | None = None,
) -> tuple[Path, Family]:
    """The folder of a whole model, and its family; nothing is loaded.

    Args:
        name_or_path: "carv-tiny", a local diffusers folder, a single .safetensors file, or a hub id.
        local_files_only: never ask the hub.
        cache_dir: of the hub's files; the hub's own place unless given.
        only: the family that the caller can work with, where it is not any.
        use: what needs that family, for the message about another.
        model_config: as of `single_file.find_folder`.

    Raises:
        CarvError: what was looked for, why it is not there or cannot be used, and the fix.
    """
    family = FAMILIES[0]
    try:
        folder = find_folder(name_or_path, local_files_only, cache_dir, family, model_config)
    except WrongFamily as error:
        if error.family is None:
            raise
        family = error.family
        folder = find_folder(name_or_path, local_files_only, cache_dir, family, model_config)
    if only not in (None, family):
        raise CarvError(
            f"{name_or_path} holds {family.name}, and {use} works with {only.name} alone: name such a model."
        )
    check_is_teacher(folder)
    return folder, family


def check_is_teacher(folder: Path) -> None:
    """CarvError for a generator that was distilled here: its UNet knows the last timestep alone."""
    card = folder / "README.md"
    if card.is_file():
        with open_file(card, RESTORE) as handle:
            text = handle.read(4096).decode("utf-8", "replace")
        if "# A one-step generator" in text.splitlines():
            raise CarvError(f"{folder} is a generator of one step, no teacher: name the model that it was made from.")


@packages("teachers")
@collection_paused()
def load_teacher(name_or_path: str, *, only: Family | None = None, use: str = "", **options: Any) -> Any:
    """The frozen teacher of a model of any family: a `LatentDiffusionTeacher`.

    Args:
        name_or_path: "carv-tiny", a local diffusers folder, a single .safetensors file, or a hub id.
        only: as of `find_model`.
        use: the same.
        **options: of `LatentDiffusionTeacher.load`: device, half_precision, local_files_only and so on.

    Raises:
        CarvError: as `find_model`.
    """
    if "folder" in options:
        raise CarvError("load_teacher finds the folder itself; leave folder out, and name it as name_or_path.")
    local, cache = bool(options.get("local_files_only", False)), options.get("cache_dir")
    config = options.get("model_config")
    folder, family = find_model(name_or_path, local, cache, only=only, use=use, model_config=config)
    return teacher_class(family).load(name_or_path, folder=folder, **options)


def teacher_class(family: Family) -> type[LatentDiffusionTeacher]:
    """The class that reads a family's models, whose `load` takes the folder that `find_model` gave."""
    return next(kind for kind in TEACHERS if kind.family is family)
