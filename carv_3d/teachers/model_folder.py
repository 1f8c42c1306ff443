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
from carv_3d.io.tensor_files import check_plain, read_header, same_tensor
from carv_3d.teachers.families import FAMILIES, INSTRUCT_PIX2PIX, OLD_NAMES, STABLE_DIFFUSION, ZERO123, Family
from carv_3d.teachers.model_config import (
    TextConfig,
    TokenizerConfig,
    TransformerConfig,
    UNetConfig,
    VAEConfig,
    check_config,
    check_prediction_type,
)

QUANTISED = "quantization_config"  # in a config.json
HALF = ".fp16"  # in the names of weights that were saved in half precision next to others
FIX = (
    "name a local diffusers folder (the one that holds model_index.json) as the model (in a configuration: "
    "pretrained_model_name_or_path), or use the built-in carv-tiny"
)

WORDS = {  # files of a tokenizer without a tokenizer.json
    "CLIPTokenizer": ("vocab.json", "merges.txt"),
    "T5TokenizerFast": ("spiece.model",),
    "GemmaTokenizerFast": ("tokenizer.model",),
}
MEND = f"mend or download it again, {FIX}."


# in the names of pipelines that start from an image, or need more than a prompt
OTHER_TASKS = ("Inpaint", "Fill", "Kontext", "Control", "Upscale", "Depth2Img", "InstructPix2Pix", "SuperResolution")


class WrongFamily(CarvError):
    """A whole model, for which another teacher is the right one: that of `family`, None where there is none."""

    family: Family | None = None


def weight_stems(part: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """The names of a part's weights and their endings, safetensors before pickles."""
    transformers = part.startswith("text_encoder") or part == "image_encoder"
    stems = ("model", "pytorch_model") if transformers else ("diffusion_pytorch_model",) * 2
    return (stems[0], ".safetensors"), (stems[1], ".bin")


def check_folder(folder: Path, family: Family = STABLE_DIFFUSION, with_weights: bool = True) -> None:
    """Raises CarvError, naming the file, unless `folder` is a model of the family, whole if not without weights."""
    _check_outer(folder)
    index_file = folder / "model_index.json"
    index = read_json(index_file)
    check_family(folder, family)
    pipeline = index.get("_class_name", "pipeline")
    task = next((word for word in OTHER_TASKS if word in str(pipeline)), None)
    if task != family.task:
        use = f" (use {INSTRUCT_PIX2PIX.use})" if task == INSTRUCT_PIX2PIX.task else ""
        raise CarvError(_bad(index_file, f"it holds a {pipeline}, and such a model is no text-to-image teacher{use}"))
    for part in family.components:
        if class_name(index, part) is None and part not in family.optional:
            raise CarvError(_bad(index_file, f"it lists no {part}"))
    present = [part for part in family.classes if class_name(index, part) is not None]
    for part in present:
        actual, expected = class_name(index, part), family.classes[part]
        if actual != expected:
            why = f"it holds a {pipeline} whose {part} is a {actual}, where {family.name} has a {expected}"
            raise CarvError(_bad(index_file, why))
    _check_scheduler(folder, class_name(index, "scheduler"))
    _check_network(folder, family)
    _check_text_widths(folder, family, present)
    for part in present:
        if with_weights:
            check_weights(folder, part)
    for part, (tokenizer, kind) in zip(family.text_encoders, family.tokenizers.items()):
        if part in present:
            size = read_config(folder, part, TextConfig).get("vocab_size", TextConfig.vocab_size)
            _check_tokenizer(folder / tokenizer, size, kind)


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


def class_name(index: dict[str, Any], part: str) -> Any:
    """The class of a part in a model_index.json, today's name for it; None where there is none."""
    entry = index.get(part)
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    return OLD_NAMES.get(name, name) if isinstance(name, str) else name


def check_family(folder: Path, family: Family) -> None:
    """Raises WrongFamily, saying what to use, if model_index.json is that of a model of another family."""
    index = read_json(folder / "model_index.json")
    if family.task is not None and family.task in str(index.get("_class_name")):
        return
    if class_name(index, "clip_camera_projection") is not None:
        if family is not ZERO123:
            raise WrongFamily(f"{folder} holds {ZERO123.name}, which takes an image and no text: use {ZERO123.use}.")
        return
    if class_name(index, "unet") is not None and class_name(index, "text_encoder") is None:
        if class_name(index, "text_encoder_2") is not None:
            raise WrongFamily(
                f"{folder} holds the refiner of Stable Diffusion XL, which has no text encoder of its own to follow "
                "a prompt from pure noise: name the base model as pretrained_model_name_or_path."
            )
        return
    parts = {part for other in FAMILIES for part in other.classes}
    present = {part: class_name(index, part) for part in parts if class_name(index, part) is not None}
    for other in FAMILIES:
        needed = {part: kind for part, kind in other.classes.items() if part in present or part not in other.optional}
        if needed == present:
            _expect(folder, other, family)
            return
    with_network = [other for other in FAMILIES if present.get(other.network) == other.classes[other.network]]
    if with_network and family not in with_network:  # whose check says what is missing
        _expect(folder, with_network[0], family)
    if "text_encoder" in present and not with_network:
        networks = [part for part in ("unet", "transformer") if part in present]
        network = "".join(f" whose {part} is a {present[part]}{_hint(present[part])}" for part in networks[:1])
        known = ", ".join(other.name for other in FAMILIES)
        why = f"it holds a {index.get('_class_name', 'pipeline')}{network}, and what is read here is {known}"
        raise WrongFamily(_bad(folder / "model_index.json", why))


def _hint(network: str) -> str:
    views = " (MVDream's, four views at once, for which diffusers has no class)"
    return views if str(network).startswith("MultiView") else ""


def _expect(folder: Path, actual: Family, expected: Family) -> None:
    if actual is not expected:
        error = WrongFamily(f"{folder} holds {actual.name}, and {expected.name} was expected: use {actual.use}.")
        error.family = actual
        raise error


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
    stems = weight_stems(part)
    for variant, (stem, suffix) in itertools.product(("", HALF), stems):
        if os.path.lexists(here / f"{stem}{variant}{suffix}"):
            return [here / f"{stem}{variant}{suffix}"]
        index = here / f"{stem}{suffix}.index{variant}.json"
        if os.path.lexists(index):
            return _shards(index)
    raise CarvError(_bad(here / f"{stems[0][0]}.safetensors", "it is missing (nor is there a .bin)"))


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


def check_weights(folder: Path, part: str) -> None:
    """CarvError for a weight file that `check_weight_file` refuses, and for shards of which two hold a tensor.

    Args:
        folder: of the model.
        part: "unet", "vae", ...
    """
    files = weight_files(folder, part)
    for file in files:
        check_weight_file(file, packed=bool(read_json(folder / part / "config.json").get(QUANTISED)))
    holders: dict[str, Path] = {}
    for file in files if len(files) > 1 else ():
        for key in read_header(file, MEND) if file.suffix == ".safetensors" else ():
            first = holders.setdefault(key, file)
            if first != file and not same_tensor(key, first, file):
                raise CarvError(_bad(file, f"it holds {key} with other values than {first.name} does"))


def check_weight_file(file: Path, packed: bool = False) -> None:
    """CarvError if the file is missing, no regular file, a git-lfs pointer, or shorter than its own header says.

    Args:
        file: of weights.
        packed: whether its config.json says how they were quantised; without that they must be plain numbers.
    """
    if not os.path.lexists(file):
        raise CarvError(_bad(file, "it is missing"))
    with open_file(file, MEND) as stream:
        if stream.read(64).startswith(b"version https://git-lfs"):
            raise CarvError(_bad(file, "it is a git-lfs pointer, not the weights (run `git lfs pull`)"))
    heads = read_header(file, MEND) if file.suffix == ".safetensors" else {}
    if not packed:
        check_plain(heads, str(file), MEND)


def _check_network(folder: Path, family: Family) -> None:
    part, kind = (family.network, UNetConfig if family.network == "unet" else TransformerConfig)
    file, unet = folder / part / "config.json", read_config(folder, part, kind)
    if unet.get("block_out_channels") == []:
        raise CarvError(_bad(file, "its block_out_channels are none"))
    if "vae" not in family.classes and unet.get("sample_size") is None:
        raise CarvError(_bad(file, "it names no sample_size, the side of its images"))
    channels, latent = unet.get("in_channels", 4), 3
    if "vae" in family.classes:
        latent = read_config(folder, "vae", VAEConfig).get("latent_channels", 4)
    if channels != latent * family.packed:
        name = "UNet" if part == "unet" else part
        gives = f"the VAE gives {latent}" if "vae" in family.classes else f"images have {latent}"
        packed = "" if family.packed == 1 else f", {family.packed} of which are packed"
        raise CarvError(
            _bad(
                file,
                f"the {name} takes {channels} channels and {gives}{packed} "
                "(an inpainting, depth or upscaling model is no text-to-image teacher)",
            )
        )
    if part != "unet":
        return
    made = unet.get("out_channels", 4)
    if "vae" in family.classes and made != latent:
        raise CarvError(
            _bad(file, f"the UNet gives {made} channels, a learned variance say, and latents have {latent}")
        )
    expected = {
        "class_embed_type": (None,), "num_class_embeds": (None,), "addition_embed_type": family.addition_embed_types,
    }  # fmt: skip
    for key, values in expected.items():
        if unet.get(key) not in values:
            these = " or ".join(map(repr, values))
            why = f"the UNet has {key} = {unet.get(key)!r}, where {family.name} has {these}"
            raise CarvError(_bad(file, why))


def _check_text_widths(folder: Path, family: Family, present: list[str]) -> None:
    """CarvError where text encoders give another width than the network takes, as their configurations say it."""
    file = folder / family.network / "config.json"
    network = read_json(file)
    for key, sources in family.text_widths:
        if any(part not in present for part, _ in sources):
            continue
        widths: list[Any] = [read_config(folder, part, TextConfig).get(name) for part, name in sources]
        if all(type(width) is int for width in (network.get(key), *widths)) and network[key] != sum(widths):
            parts = " and ".join(part for part, _ in sources)
            why = f"{key} is {network[key]}, and the text of {parts} is {sum(widths)} wide: they do not fit"
            raise CarvError(_bad(file, why))


def _check_scheduler(folder: Path, named: Any) -> None:
    """CarvError unless the noise that the model was trained on is understood. named: the class in model_index.json."""
    file = folder / "scheduler" / "scheduler_config.json"
    config = read_json(file)
    try:
        schedule = NoiseSchedule.from_config(config)
        check_prediction_type(str(schedule.prediction_type), schedule)
        sampled = schedule if named is None else NoiseSchedule.from_config({**config, "_class_name": named})
    except CarvError as error:
        raise CarvError(_bad(file, str(error).rstrip("."))) from error
    if sampled.family != schedule.family:
        why = f"it is of a {config.get('_class_name')}, and model_index.json names a {named}: they add other noise"
        raise CarvError(_bad(file, why))


def _check_tokenizer(here: Path, size: int, kind: str) -> None:
    """size: of the text encoder's vocabulary. kind: the class."""
    needed = [here / name for name in WORDS[kind]]
    if not (here / "tokenizer.json").is_file() and not all(file.is_file() for file in needed):
        names = " and ".join(file.name for file in needed)
        raise CarvError(_bad(needed[0], f"it is missing (the tokenizer needs {names})"))
    read = {file.name: read_json(file) for file in sorted(here.glob("*.json"))}
    if os.path.lexists(here / "merges.txt"):
        structured.read_text(here / "merges.txt", MEND)
    if "tokenizer_config.json" in read:
        _checked(here / "tokenizer_config.json", TokenizerConfig)
    model = read.get("tokenizer.json", {}).get("model", {})
    for name, words in (("vocab.json", read.get("vocab.json", {})), ("tokenizer.json", model.get("vocab", {}))):
        words = {word: number for number, (word, _) in enumerate(words)} if isinstance(words, list) else words
        for word, number in words.items():
            if type(number) is not int or not 0 <= number < size:
                due = f"a whole number below {size}, the words of the text encoder"
                raise CarvError(_bad(here / name, f"the word {shown(word)} has {shown(number)}, and {due}, is due"))


def _bad(file: Path, why: str) -> str:
    return f"the diffusion model cannot be used: {file}: {why}; {MEND}"
