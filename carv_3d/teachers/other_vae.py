"""Another VAE than a model's own: a folder in diffusers' format, or one file of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from carv_3d.errors import CarvError, first_line
from carv_3d.io.files import expanded
from carv_3d.io.tensor_files import check_finite
from carv_3d.teachers.families import Family
from carv_3d.teachers.model_config import VAEConfig, vae_factor
from carv_3d.teachers.model_folder import MEND, check_weight_file, check_weights, read_config

FIX = (
    "name the folder of a VAE in diffusers' format (it holds config.json), a model that has one, or a .safetensors "
    "file of its weights, as vae"
)


def find_vae(vae: str | None, folder: Path, family: Family) -> Path | None:
    """Where the VAE of a model is: its own folder, another one, or a file; None for a family without.

    Args:
        vae: the folder of another VAE, or of a model that has one, or a .safetensors file; None for the model's own.
        folder: of the model.
        family: its.

    Raises:
        CarvError: no VAE is there, or it is not one for this family and its latents.
    """
    if "vae" not in family.classes:
        if vae:
            raise CarvError(f"vae is {vae}, and {family.name} has no VAE: leave it out.")
        return None
    if not vae:
        return folder / "vae"
    path = expanded(vae)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise CarvError(f"vae is {vae}, which is no .safetensors file, and of files these alone are read: {FIX}.")
        check_weight_file(path)
        return path
    path = path / "vae" if (path / "vae").is_dir() else path
    if not (path / "config.json").is_file():
        raise CarvError(f"vae is {vae}, and there is no config.json in {path}: {FIX}.")
    actual, own = (read_config(at.parent, at.name, VAEConfig) for at in (path, folder / "vae"))
    if actual.get("_class_name") != family.classes["vae"]:
        raise CarvError(
            f"{path} holds a {actual.get('_class_name')}, where {family.name} has a {family.classes['vae']}: {FIX}."
        )
    sizes = [(config.get("latent_channels", 4), vae_factor(config)) for config in (actual, own)]
    if sizes[0] != sizes[1]:
        (channels, factor), (due, size) = sizes
        raise CarvError(
            f"{path} gives latents of {channels} channels, {factor} times smaller than images, and the model takes "
            f"{due} channels, {size} times smaller: {FIX}."
        )
    check_weights(path.parent, path.name)
    return path


def load_vae_file(file: Path, folder: Path, family: Family, dtype: torch.dtype) -> Any:
    """A VAE of one file on the CPU, in diffusers' names or those of the code that trained it.

    A file says nothing of the scale of its latents; all of that is taken from the model's own configuration.

    Args:
        file: the weights.
        folder: of the model, whose vae/config.json counts.
        family: its.
        dtype: of the weights.

    Raises:
        CarvError: naming the file, where it does not fit that configuration.
    """
    import diffusers

    kind = getattr(diffusers, family.classes["vae"])
    own = f"the VAE's configuration in {folder}"
    try:
        vae = kind.from_single_file(
            str(file), config=str(folder), subfolder="vae", torch_dtype=dtype, local_files_only=True
        )
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # of the libraries' own kinds
        raise CarvError(f"{file} does not fit {own} ({first_line(error)}): {FIX}.") from error
    lacking = [key for key, value in vae.state_dict().items() if value.is_meta]
    if lacking:
        raise CarvError(f"{file} lacks {len(lacking)} tensors of {own}, such as {lacking[0]}: {FIX}.")
    check_finite(vae.state_dict(), f"vae cannot be used: {file}", MEND)
    return vae
