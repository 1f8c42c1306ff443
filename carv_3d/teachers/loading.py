"""From a checked folder to the parts of a model, on old and new diffusers and transformers alike."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError, first_line, require, shown
from carv_3d.io.tensor_files import check_filled, check_finite, load_tensors
from carv_3d.teachers.families import STABLE_DIFFUSION, Family
from carv_3d.teachers.model_folder import (
    FIX,
    MEND,
    class_name,
    read_json,
    weight_files,
    weight_variant,
)
from carv_3d.teachers.other_vae import load_vae_file
from carv_3d.teachers.single_file import load_single_file
from carv_3d.teachers.tokens import shortened

log = logging.getLogger(__name__)


def choose_device(device: str | torch.device | None) -> torch.device:
    """Where a model goes: CUDA if there is one, unless named. CarvError for the device that holds no numbers."""
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "meta":
        raise CarvError("device is meta, where a model has no weights; give cpu, or cuda where there is one.")
    return chosen


def choose_dtype(device: torch.device, half_precision: bool | None, half: str = "float16") -> torch.dtype:
    """`half` on CUDA unless refused; float32 elsewhere, with a note in the log if half was asked for."""
    if half_precision and device.type != "cuda":
        log.info("half precision is for CUDA; on %s the teacher runs in float32.", device.type)
    chosen: torch.dtype = getattr(torch, half)
    return chosen if device.type == "cuda" and half_precision in (None, True) else torch.float32


def load_parts(
    folder: Path,
    dtype: torch.dtype,
    with_text: bool = True,
    family: Family = STABLE_DIFFUSION,
    vae_dtype: torch.dtype | None = None,
    with_vae: bool = True,
    vae: Path | None = None,
    weights: Path | None = None,
) -> dict[str, Any]:
    """The family's parts of a diffusers folder: models (on the CPU), tokenizers, and as scheduler its schedule.

    Args:
        folder: of the model.
        dtype: of the models.
        with_text: whether text encoders and tokenizers are read; else they are None.
        family: whose parts.
        vae_dtype: of the VAE, if another.
        with_vae: whether the VAE is read; else it is None.
        vae: the folder or file of a VAE in place of the model's own, as `find_vae` gives it.
        weights: a single file that all models are read from; `folder` then has the configurations.

    Raises:
        CarvError: naming the file, for whatever cannot be read or does not fit its config.
    """
    import diffusers
    import transformers

    parts: dict[str, Any] = dict.fromkeys(family.components)
    vae_dtype = vae_dtype or dtype
    with _quiet(diffusers.utils.logging, transformers.utils.logging):
        if weights is not None:
            wide = dtype if vae_dtype == dtype else torch.float32
            parts |= load_single_file(weights, folder, family, wide, with_text)
            for part in family.classes:
                if parts[part] is not None:
                    parts[part] = parts[part].to(vae_dtype if part == "vae" else dtype)
        else:
            parts[family.network] = load_weights(
                diffusers, family.classes[family.network], folder, family.network, dtype
            )
        if weights is None and with_text:
            parts |= load_text_parts(folder, dtype, family)
        if with_vae and "vae" in family.classes and (vae is not None or weights is None):
            own = vae or folder / "vae"
            if own.is_file():
                parts["vae"] = load_vae_file(own, folder, family, vae_dtype)
            else:
                parts["vae"] = load_weights(diffusers, family.classes["vae"], own.parent, own.name, vae_dtype)
    parts["scheduler"] = load_schedule(folder)
    return parts


def load_text_parts(folder: Path, dtype: torch.dtype, family: Family = STABLE_DIFFUSION) -> dict[str, Any]:
    """The text encoders (on the CPU, in `dtype`) and tokenizers alone. Raises CarvError as `load_parts`."""
    import diffusers
    import transformers

    index = read_json(folder / "model_index.json")
    absent = [part for part in family.optional if class_name(index, part) is None]
    parts: dict[str, Any] = dict.fromkeys(absent)
    with _quiet(diffusers.utils.logging, transformers.utils.logging):
        for part in family.text_encoders:
            if part not in absent:
                parts[part] = load_weights(transformers, family.classes[part], folder, part, dtype)
    return parts | load_tokenizers(folder, family)


def load_tokenizers(folder: Path, family: Family = STABLE_DIFFUSION) -> dict[str, Any]:
    """The tokenizers of a model that it has. Raises CarvError as `load_parts`."""
    import diffusers
    import transformers

    index, made = read_json(folder / "model_index.json"), {}
    with _quiet(diffusers.utils.logging, transformers.utils.logging):
        for part, kind in family.tokenizers.items():
            if part in family.optional and class_name(index, part) is None:
                continue
            with _named(folder, part, folder / part):
                made[part] = getattr(transformers, kind).from_pretrained(
                    str(folder), subfolder=part, local_files_only=True
                )
                made[part]("a mug")  # what its words lack is noticed here
            _check_special_words(folder, part, made[part])
    return made


def _check_special_words(folder: Path, part: str, tokenizer: Any) -> None:
    """CarvError where padding, beginning or end is a word of its own, with a number that the encoder does not know."""
    config = folder / part.replace("tokenizer", "text_encoder") / "config.json"
    size = read_json(config).get("vocab_size") if config.is_file() else None
    for word, number in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids):
        if size is not None and number is not None and number >= size:
            raise CarvError(
                f"the {part} of {folder} has the special word {shown(word)} with the number {number}, and its text "
                f"encoder knows {size} words; {FIX}."
            )


def fitted_prompt(folder: Path, family: Family, prompt: str, endings: Sequence[str], longest: int = 2**30) -> str:
    """The prompt, cut so that every ending fits behind it, see `tokens.shortened`; no text encoder is loaded.

    Args:
        folder: of the model, as `resolve_model` gives it.
        family: of the model.
        prompt: the text.
        endings: what will stand behind the prompt.
        longest: tokens that the caller takes, whatever the text encoder reads.

    Returns:
        The prompt, or its first words.

    Raises:
        CarvError: as `load_parts`.
    """
    for part, tokenizer in load_tokenizers(folder, family).items():
        config = read_json(folder / part.replace("tokenizer", "text_encoder") / "config.json")
        read = int(config.get("max_position_embeddings") or 2**30)  # T5 has no positions of its own
        prompt = shortened(tokenizer, prompt, endings, min(longest, read, int(tokenizer.model_max_length)))
    return prompt


def load_schedule(folder: Path) -> NoiseSchedule:
    """The noise schedule of a diffusers folder, whatever the scheduler's class. Raises CarvError, naming the file."""
    file = folder / "scheduler" / "scheduler_config.json"
    try:
        return NoiseSchedule.from_config(read_json(file))
    except CarvError as error:
        raise CarvError(f"the diffusion model cannot be used: {file}: {error}") from error


def load_ddim(folder: Path) -> Any:
    """The scheduler of a variance-preserving folder as a DDIMScheduler. Raises CarvError as `load_parts`."""
    import diffusers

    file = folder / "scheduler" / "scheduler_config.json"
    if load_schedule(folder).family != "vp":
        raise CarvError(f"{file} is of flow matching or EDM, and here a DDPM, DDIM or Euler scheduler is needed.")
    with _quiet(diffusers.utils.logging), _named(folder, "scheduler", file):
        return diffusers.DDIMScheduler.from_pretrained(str(folder), subfolder="scheduler")


def can_offload(device: torch.device) -> bool:
    """Whether parameters can wait in the CPU's memory; a note in the log where there is no GPU to spare."""
    if device.type != "cuda":
        log.info("sequential CPU offload is for CUDA; on %s there is nothing to offload.", device.type)
    return device.type == "cuda"


def offload_to_cpu(parts: list[Any], device: torch.device) -> None:
    """Let the parameters of `parts` visit `device` layer by layer. Raises CarvError without accelerate."""
    accelerate = require("accelerate", "distill", "sequential CPU offload")
    for part in parts:
        accelerate.cpu_offload(part, device, offload_buffers=len(list(part.parameters())) > 0)


def merge_tokens(unet: Any, arguments: dict[str, Any]) -> None:
    """Patch of tomesd on the UNet (arXiv 2303.17604). Raises CarvError without tomesd or for what it refuses."""
    try:
        import tomesd
    except ImportError as error:
        raise CarvError("token_merging needs tomesd: pip install tomesd, or set it to false.") from error
    try:
        tomesd.apply_patch(unet, **arguments)
    except TypeError as error:
        raise CarvError(f"token_merging_params {arguments} are refused by tomesd ({error}).") from error


def dtype_argument(library: str, version: str) -> str:
    """`dtype` or `torch_dtype`: which of the two `from_pretrained` of this library reads.

    transformers has `dtype` since 4.56. Old diffusers ignores it or raises, new is about to drop the other.

    Args:
        library: "transformers" or "diffusers".
        version: of it, as installed.
    """
    from packaging.version import Version

    since = {"transformers": "4.56", "diffusers": "0.42"}[library]
    return "dtype" if Version(version) >= Version(since) else "torch_dtype"


def load_weights(library: Any, kind: str, folder: Path, part: str, dtype: torch.dtype) -> Any:
    """A part of a diffusers folder as a model on the CPU.

    Args:
        library: diffusers or transformers.
        kind: the class in it.
        folder: of the model.
        part: its folder there.
        dtype: of the weights.

    Raises:
        CarvError: as `load_parts`.
    """
    files = weight_files(folder, part)
    file, variant = files[0], weight_variant(files)
    with _named(folder, part, file):
        if kind == "AutoencoderKL" and not _knows_its_attention(getattr(library, kind), folder / part):
            return load_vae_without_attention(folder / part, dtype)
        model, info = getattr(library, kind).from_pretrained(
            str(folder),
            subfolder=part,
            local_files_only=True,
            output_loading_info=True,
            variant=variant,
            **{dtype_argument(library.__name__, library.__version__): dtype},
        )
        missing = [key for key in info["missing_keys"] if not key.endswith("position_ids")]
        if missing and part.startswith("text_encoder"):
            missing = _load_renamed(model, files)
    if missing:
        raise CarvError(
            f"the diffusion model cannot be used: {file} lacks {len(missing)} of the tensors that its "
            f"config.json asks for, such as {min(missing)}; {FIX}."
        )
    weights = model.state_dict()
    check_finite(weights, f"the diffusion model cannot be used: {file}", MEND)
    check_filled(weights, f"the diffusion model cannot be used: {file}", MEND)
    return model


def _knows_its_attention(kind: Any, folder: Path) -> bool:
    """False if the VAE has no attention in its middle and this diffusers (before 0.26) has no option for that."""
    expected = read_json(folder / "config.json").get("mid_block_add_attention", True)
    return expected or "mid_block_add_attention" in inspect.signature(kind.__init__).parameters


def load_vae_without_attention(folder: Path, dtype: torch.dtype) -> Any:
    """The AutoencoderKL of a folder, its weights in safetensors, without attention in its middle on any diffusers."""
    from diffusers import AutoencoderKL

    names = inspect.signature(AutoencoderKL.__init__).parameters
    config = read_json(folder / "config.json")
    vae = AutoencoderKL(**{k: v for k, v in config.items() if k in names and k != "mid_block_add_attention"})
    none: Any = [None]  # as diffusers itself says that there is none
    for half in (vae.encoder, vae.decoder):
        half.mid_block.attentions = torch.nn.ModuleList(none * len(half.mid_block.attentions))
    vae.load_state_dict(_tensors(weight_files(folder.parent, folder.name)))
    return vae.to(dtype)


def _tensors(files: Sequence[Path]) -> dict[str, Any]:
    """Of all shards of a part."""
    return {key: value for file in files for key, value in load_tensors(file, MEND).items()}


def _load_renamed(model: Any, files: Sequence[Path]) -> list[str]:
    """CLIP as transformers 5 saves it, without the prefix `text_model.` that 4 wants. Returns what is missing."""
    saved = {key.removeprefix("text_model."): value for key, value in _tensors(files).items()}
    expected = model.state_dict()
    weights = {
        key: saved[key.removeprefix("text_model.")] for key in expected if key.removeprefix("text_model.") in saved
    }
    model.load_state_dict(weights, strict=False)
    return [key for key in expected if key not in weights and not key.endswith("position_ids")]


@contextlib.contextmanager
def _quiet(*loggers: Any) -> Iterator[None]:
    """No progress bars or notes about unused config keys while a model loads; what fails still raises."""
    before = [logger.get_verbosity() for logger in loggers]
    # whether bars were on is not asked for in every version, so they are only switched off where it is
    bars = [logger for logger in loggers if getattr(logger, "is_progress_bar_enabled", lambda: False)()]
    for logger in loggers:
        logger.set_verbosity_error()
    for logger in bars:
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, before):
            logger.set_verbosity(level)
        for logger in bars:
            logger.enable_progress_bar()


@contextlib.contextmanager
def _named(folder: Path, part: str, file: Path) -> Iterator[None]:
    """Whatever a library says while it loads a part becomes one CarvError that names the file."""
    try:
        yield
    except (CarvError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        raise CarvError(f"the {part} of {folder} cannot be loaded from {file} ({first_line(error)}); {FIX}.") from error
