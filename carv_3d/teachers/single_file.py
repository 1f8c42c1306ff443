"""Checkpoints of one file, as Stable Diffusion 1, 2 and XL were first given out, read through diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError, first_line
from carv_3d.io.files import expanded
from carv_3d.io.tensor_files import check_filled, check_finite, check_plain, read_header
from carv_3d.teachers.availability import resolve_model
from carv_3d.teachers.families import STABLE_DIFFUSION, STABLE_DIFFUSION_XL, Family
from carv_3d.teachers.model_folder import MEND, check_folder, read_json

UNSAID = "stabilityai/stable-diffusion-2-1"
"""What diffusers takes for any Stable Diffusion 2; its file does not say that 2-base and 2.1-base predict noise."""
MARKS: dict[str, tuple[str, Callable[[NoiseSchedule], bool]]] = {
    "v_pred": ("predicts v", lambda schedule: schedule.prediction_type == "v_prediction"),
    "ztsnr": ("was trained to zero terminal SNR", lambda schedule: float(schedule.alphas_cumprod[-1]) == 0),
    "edm_mean": ("was trained with EDM", lambda schedule: schedule.family == "edm"),
    "edm_vpred.sigma_max": ("predicts EDM's v", lambda schedule: schedule.prediction_type == "edm_v"),
}
"""Names in a file by which its authors say what its weights do not show, and what its configuration must then say."""
PIPELINES = {STABLE_DIFFUSION.name: "StableDiffusionPipeline", STABLE_DIFFUSION_XL.name: "StableDiffusionXLPipeline"}
FIX = (
    "name a local diffusers folder of the same kind of model as model_config (its configurations and tokenizers are "
    "read, not its weights)"
)


def single_file(name_or_path: str | Path) -> Path | None:
    """The file, if the name is that of one."""
    path = expanded(str(name_or_path).strip())
    return path if path.is_file() else None


def find_folder(
    name_or_path: str,
    local_files_only: bool = False,
    cache_dir: str | None = None,
    family: Family = STABLE_DIFFUSION,
    model_config: str | None = None,
) -> Path:
    """`resolve_model`, or for a single file the folder of its configurations; the hub is not asked for that.

    Args:
        name_or_path: "carv-tiny", a local diffusers folder, a .safetensors file, or a hub id.
        local_files_only: as of `resolve_model`.
        cache_dir: the same.
        family: the same.
        model_config: that folder; without it what the hub's cache has for such a file.

    Raises:
        CarvError: as `resolve_model`; a file of another kind, or configurations that are not on this machine.
    """
    file = single_file(name_or_path)
    if file is None:
        if model_config:
            raise CarvError(f"model_config is for a single file, and {name_or_path} is none: leave it out.")
        return resolve_model(name_or_path, local_files_only, cache_dir, family)
    if file.suffix != ".safetensors":
        raise CarvError(f"{file} is no .safetensors file, which alone is read: save its weights as one.")
    folder = expanded(model_config) if model_config else _cached(file, cache_dir)
    if not folder.is_dir():
        raise CarvError(f"model_config is {folder}, and there is no such folder: {FIX}.")
    check_folder(folder, family, with_weights=False)
    if family.name not in PIPELINES:
        raise CarvError(f"{folder} is of {family.name}, of which no single file is read: name a diffusers folder.")
    _check_marks(file, folder)
    return folder


def _check_marks(file: Path, folder: Path) -> None:
    scheduler = folder / "scheduler" / "scheduler_config.json"
    schedule, names = NoiseSchedule.from_config(read_json(scheduler)), read_header(file, MEND)
    check_plain(names, str(file), MEND)
    for name, (said, holds) in MARKS.items():
        if name in names and not holds(schedule):
            raise CarvError(f"{file} holds {name}, so it {said}, and {scheduler} says otherwise: {FIX}.")


def _cached(file: Path, cache_dir: str | None) -> Path:
    """Where the hub's cache has the configurations that diffusers takes for such a file."""
    import huggingface_hub

    shapes: Any = {key: SimpleNamespace(shape=head.shape) for key, head in read_header(file, MEND).items()}
    why = "this version of diffusers does not say which"
    try:
        from diffusers.loaders.single_file_utils import fetch_diffusers_config

        name = str(fetch_diffusers_config(shapes)["pretrained_model_name_or_path"])
        if name == UNSAID:
            raise CarvError(
                f"{file} is of Stable Diffusion 2, and it does not say whether it predicts v (2 and 2.1, of 768 "
                f"pixels) or noise (2-base and 2.1-base, of 512): {FIX}."
            )
        why = f"those of {name} are sought in the hub's cache alone"
        return Path(huggingface_hub.snapshot_download(name, cache_dir=cache_dir, local_files_only=True))
    except CarvError:
        raise
    except Exception as error:  # of the libraries' own kinds
        raise CarvError(
            f"the configurations that go with the single file {file} are not on this machine ({why}): {FIX}."
        ) from error


def load_single_file(
    file: Path, folder: Path, family: Family, dtype: torch.dtype, with_text: bool = True
) -> dict[str, Any]:
    """The family's models and tokenizers from one file, on the CPU.

    Args:
        file: the weights.
        folder: of configurations and tokenizers.
        family: whose parts.
        dtype: of the models.
        with_text: whether text encoders and tokenizers are read; else they are None.

    Raises:
        CarvError: naming the file, for whatever cannot be read or does not fit the configurations.
    """
    import diffusers

    kind = getattr(diffusers, PIPELINES[family.name])
    unused: dict[str, Any] = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    if not with_text:
        unused |= dict.fromkeys((*family.text_encoders, *family.tokenizers))
    try:
        pipeline = kind.from_single_file(
            str(file), config=str(folder), torch_dtype=dtype, local_files_only=True, **unused
        )
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # of the libraries' own kinds
        why = "it lacks tensors" if "meta tensor" in str(error) else first_line(error)
        raise CarvError(f"{file} does not fit the configurations in {folder} ({why}): {FIX}.") from error
    parts: dict[str, Any] = {part: getattr(pipeline, part, None) for part in (*family.classes, *family.tokenizers)}
    for part in family.classes:
        state = {} if parts[part] is None else parts[part].state_dict()
        lacking = [key for key, value in state.items() if value.is_meta]
        if lacking:
            raise CarvError(f"{file} lacks {len(lacking)} tensors of its {part}, such as {lacking[0]}: {FIX}.")
        check_finite(state, f"the diffusion model cannot be used: {file}", MEND)
        check_filled(state, f"the {part} in {file}", MEND)
    return parts
