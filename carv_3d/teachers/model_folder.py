"""Is this folder a diffusion model of a family that can be used? Answered from its files, before any work.

Only small files and the heads of the weights are read, so a truncated download, a git-lfs
pointer or a pipeline of another kind is named at once, in one CarvError.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from carv_3d.errors import CarvError
from carv_3d.io import structured
from carv_3d.teachers.families import FAMILIES, STABLE_DIFFUSION, Family

WEIGHT_STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
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
    unet, vae = read_json(folder / "unet" / "config.json"), read_json(folder / "vae" / "config.json")
    _check_unet(folder / "unet" / "config.json", unet, vae, family)
    for part in family.text_encoders:
        read_json(folder / part / "config.json")
    _check_prediction_type(folder)
    for part in family.classes:
        for file in weight_files(folder, part):
            check_weight_file(file)
    for part in family.tokenizers:
        _check_tokenizer(folder / part)


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
    """The object in a JSON file; CarvError if it is missing, empty, cut off or not an object."""
    if not file.is_file():
        raise CarvError(_bad(file, "it is missing"))
    value: dict[str, Any] = structured.read_json(file, MEND)
    return value


def weight_files(folder: Path, part: str) -> list[Path]:
    """The weight files of a part: safetensors before .bin, shards by their index."""
    here = folder / part
    for stem, suffix in ((WEIGHT_STEMS[part], ".safetensors"), (BIN_STEMS[part], ".bin")):
        if (here / f"{stem}{suffix}").is_file():
            return [here / f"{stem}{suffix}"]
        index = here / f"{stem}{suffix}.index.json"
        if index.is_file():
            return sorted({here / name for name in read_json(index).get("weight_map", {}).values()})
    raise CarvError(_bad(here / f"{WEIGHT_STEMS[part]}.safetensors", "it is missing (nor is there a .bin)"))


def check_weight_file(file: Path) -> None:
    """CarvError if the file is missing, a git-lfs pointer, or shorter than its own header says."""
    if not file.is_file():
        raise CarvError(_bad(file, "it is missing"))
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(64)
        if head.startswith(b"version https://git-lfs"):
            raise CarvError(_bad(file, "it is a git-lfs pointer, not the weights (run `git lfs pull`)"))
        if file.suffix != ".safetensors":
            return
        length = int.from_bytes(head[:8], "little")
        if size < 8 or 8 + length > size:
            raise CarvError(_bad(file, f"it is cut off at {size} bytes"))
        stream.seek(8)
        try:
            header = structured.parse_json(stream.read(length).decode("utf-8"), str(file))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CarvError(_bad(file, "its safetensors header is not readable")) from error
    whole = 8 + length + max(ends, default=0)
    if size < whole:
        raise CarvError(_bad(file, f"it is cut off: {size} bytes of {whole}"))


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


def _check_prediction_type(folder: Path) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    kind = read_json(file).get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise CarvError(_bad(file, f"prediction_type is {kind!r}, not epsilon or v_prediction"))


def _check_tokenizer(here: Path) -> None:
    pair = [here / "vocab.json", here / "merges.txt"]
    if not (here / "tokenizer.json").is_file() and not all(file.is_file() for file in pair):
        raise CarvError(_bad(pair[0], "it is missing (the tokenizer needs vocab.json and merges.txt)"))
    for file in (here / "vocab.json", here / "tokenizer.json"):
        if file.is_file():
            read_json(file)


def _bad(file: Path, why: str) -> str:
    return f"the diffusion model cannot be used: {file}: {why}; {MEND}"
