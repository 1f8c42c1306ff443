"""Is this folder a diffusion model of a family that can be used? Answered from its files, before any work.

Only small files and the heads of the weights are read, so a truncated download, a git-lfs
pointer or a pipeline of another kind is named at once, in one CarvError.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

from carv_3d.core.options import Options
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError, shown
from carv_3d.io import structured
from carv_3d.io.files import open_file
from carv_3d.io.tensor_files import read_header
from carv_3d.teachers.families import FAMILIES, STABLE_DIFFUSION, Family
from carv_3d.teachers.model_config import (
    TextConfig,
    TokenizerConfig,
    UNetConfig,
    VAEConfig,
    check_config,
    check_prediction,
)

WEIGHT_STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
HALF = ".fp16"  # in the names of weights that were saved in half precision next to others
BIN_STEMS = {**WEIGHT_STEMS, "text_encoder": "pytorch_model", "text_encoder_2": "pytorch_model"}
FIX = (
    "name a local diffusers folder (the one that holds model_index.json) as the model (in a configuration: "
    "pretrained_model_name_or_path), or use the built-in carv-tiny"
)

MEND = f"mend or download it again, {FIX}."


class WrongFamily(CarvError):
    """A whole model, for which another teacher is the right one."""


def check_folder(folder: Path, family: Family = STABLE_DIFFUSION) -> None:
    """Raises CarvError, naming the file, unless `folder` is a whole model of the family."""
    _check_outer(folder)
    index_file = folder / "model_index.json"
    index = read_json(index_file)
    check_family(folder, family)
    for part in family.components:
        if _class_name(index, part) is None:
            raise CarvError(_bad(index_file, f"it lists no {part}"))
    for part, expected in family.classes.items():
        actual = _class_name(index, part)
        if actual != expected:
            pipeline = index.get("_class_name", "pipeline")
            why = f"it holds a {pipeline} whose {part} is a {actual}, where {family.name} has a {expected}"
            raise CarvError(_bad(index_file, why))
    _check_scheduler(folder, _class_name(index, "scheduler"))
    unet, vae = read_config(folder, "unet", UNetConfig), read_config(folder, "vae", VAEConfig)
    _check_unet(folder / "unet" / "config.json", unet, vae, family)
    for part in family.classes:
        for file in weight_files(folder, part):
            check_weight_file(file)
    for part, tokenizer in zip(family.text_encoders, family.tokenizers):
        size = read_config(folder, part, TextConfig).get("vocab_size", TextConfig.vocab_size)
        _check_tokenizer(folder / tokenizer, size)


def _check_outer(folder: Path) -> None:
    inside = sorted(path.parent for path in (folder / "snapshots").glob("*/model_index.json"))
    if inside:
        raise CarvError(
            f"{folder} is the outer folder of a hub's cache: name the model's folder in snapshots/, {inside[0]}."
        )


def read_config(folder: Path, part: str, kind: type[Options]) -> dict[str, Any]:
    """A part's config.json, with the values of `kind` checked; CarvError names file, key, value and what is due."""
    return _checked(folder / part / "config.json", kind)


def _checked(file: Path, kind: type[Options]) -> dict[str, Any]:
    values = read_json(file)
    try:
        check_config(values, kind)
    except CarvError as error:
        raise CarvError(_bad(file, str(error).rstrip("."))) from None
    return values


def _class_name(index: dict[str, Any], part: str) -> Any:
    entry = index.get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def check_family(folder: Path, family: Family) -> None:
    """Raises WrongFamily, saying what to use, if model_index.json is that of a model of another family."""
    index = read_json(folder / "model_index.json")
    if index.get("unet") is not None and _class_name(index, "text_encoder") is None:
        if _class_name(index, "text_encoder_2") is not None:
            raise WrongFamily(
                f"{folder} holds the refiner of Stable Diffusion XL, which has no text encoder of its own to follow "
                "a prompt from pure noise: name the base model as pretrained_model_name_or_path."
            )
        return
    for other in FAMILIES:
        if other is not family and all(_class_name(index, p) == kind for p, kind in other.classes.items()):
            encoders = {p for p in (*family.classes, *other.classes) if _class_name(index, p) is not None}
            if encoders == set(other.classes):
                raise WrongFamily(f"{folder} holds {other.name}, and {family.name} was expected: use {other.use}.")


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; CarvError if it is missing, empty, cut off, no regular file or not an object."""
    if not os.path.lexists(file):
        raise CarvError(_bad(file, "it is missing"))
    value: dict[str, Any] = structured.read_json(file, MEND)
    return value


def weight_files(folder: Path, part: str) -> list[Path]:
    """The weight files of a part: safetensors before .bin, half precision where there is nothing else; shards by index.

    A hub's models often have both `NAME.safetensors` and `NAME.fp16.safetensors`, and some the second alone.

    Args:
        folder: of the model.
        part: "unet", "vae", ...

    Raises:
        CarvError: none is there.
    """
    here = folder / part
    stems = ((WEIGHT_STEMS[part], ".safetensors"), (BIN_STEMS[part], ".bin"))
    for variant, (stem, suffix) in itertools.product(("", HALF), stems):
        if os.path.lexists(here / f"{stem}{variant}{suffix}"):
            return [here / f"{stem}{variant}{suffix}"]
        index = here / f"{stem}{suffix}.index{variant}.json"
        if os.path.lexists(index):
            return _shards(index)
    raise CarvError(_bad(here / f"{WEIGHT_STEMS[part]}.safetensors", "it is missing (nor is there a .bin)"))


def weight_variant(files: list[Path]) -> str | None:
    """The `variant` by which the libraries load these files: "fp16", or None."""
    return HALF[1:] if any(HALF in file.name for file in files) else None


def _shards(index: Path) -> list[Path]:
    shards = read_json(index).get("weight_map")
    names = set(shards.values()) if isinstance(shards, dict) and all(map(_is_name, shards.values())) else set()
    if not names:
        raise CarvError(_bad(index, "its weight_map must name a file next to it for each tensor"))
    return sorted(index.parent / name for name in names)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and Path(value).name == value


def check_weight_file(file: Path) -> None:
    """CarvError if the file is missing, no regular file, a git-lfs pointer, or shorter than its own header says."""
    if not os.path.lexists(file):
        raise CarvError(_bad(file, "it is missing"))
    with open_file(file, MEND) as stream:
        if stream.read(64).startswith(b"version https://git-lfs"):
            raise CarvError(_bad(file, "it is a git-lfs pointer, not the weights (run `git lfs pull`)"))
    if file.suffix == ".safetensors":
        read_header(file, MEND)


def _check_unet(file: Path, unet: dict[str, Any], vae: dict[str, Any], family: Family) -> None:
    channels, latent = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels != latent:
        raise CarvError(
            _bad(
                file,
                f"the UNet takes {channels} channels and the VAE gives {latent} "
                "(an inpainting, depth or upscaling model is no text-to-image teacher)",
            )
        )
    expected = {
        "class_embed_type": (None,), "num_class_embeds": (None,), "addition_embed_type": family.addition_embed_types,
    }  # fmt: skip
    for key, values in expected.items():
        if unet.get(key) not in values:
            these = " or ".join(map(repr, values))
            why = f"the UNet has {key} = {unet.get(key)!r}, where {family.name} has {these}"
            raise CarvError(_bad(file, why))


def _check_scheduler(folder: Path, named: Any) -> None:
    """CarvError unless the noise that the model was trained on is understood. named: the class in model_index.json."""
    file = folder / "scheduler" / "scheduler_config.json"
    config = read_json(file)
    try:
        schedule = NoiseSchedule.from_config(config)
        check_prediction(str(schedule.prediction_type), schedule)
        sampled = schedule if named is None else NoiseSchedule.from_config({**config, "_class_name": named})
    except CarvError as error:
        raise CarvError(_bad(file, str(error).rstrip("."))) from error
    if sampled.family != schedule.family:
        why = f"it is of a {config.get('_class_name')}, and model_index.json names a {named}: they add other noise"
        raise CarvError(_bad(file, why))


def _check_tokenizer(here: Path, size: int) -> None:
    """size: of the text encoder's vocabulary."""
    pair = [here / "vocab.json", here / "merges.txt"]
    if not (here / "tokenizer.json").is_file() and not all(file.is_file() for file in pair):
        raise CarvError(_bad(pair[0], "it is missing (the tokenizer needs vocab.json and merges.txt)"))
    read = {file.name: read_json(file) for file in sorted(here.glob("*.json"))}
    if os.path.lexists(pair[1]):
        structured.read_text(pair[1], MEND)
    if "tokenizer_config.json" in read:
        _checked(here / "tokenizer_config.json", TokenizerConfig)
    model = read.get("tokenizer.json", {}).get("model", {})
    for name, words in (("vocab.json", read.get("vocab.json", {})), ("tokenizer.json", model.get("vocab", {}))):
        for word, number in words.items():
            if type(number) is not int or not 0 <= number < size:
                due = f"a whole number below {size}, the words of the text encoder"
                raise CarvError(_bad(here / name, f"the word {shown(word)} has {shown(number)}, and {due}, is due"))


def _bad(file: Path, why: str) -> str:
    return f"the diffusion model cannot be used: {file}: {why}; {MEND}"
