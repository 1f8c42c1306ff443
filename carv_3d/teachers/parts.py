"""A part of a model that goes with another one: a ControlNet, or the scheduler whose schedule is taken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError
from carv_3d.io.files import expanded
from carv_3d.teachers.availability import HUB_TIMEOUT_S, hub_reason, looks_like_path, offline_mode
from carv_3d.teachers.model_folder import check_weights, read_json

CONTROLNET = "ControlNetModel"
STABLE_DIFFUSION_DDIM = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000,
    "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip
KNOWN = (
    "runwayml/stable-diffusion-v1-5",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "CompVis/stable-diffusion-v1-4",
)
"""Models whose scheduler has that configuration, so nothing is fetched; the first was withdrawn."""


@dataclass(frozen=True)
class DDIM:
    """What DDIM takes from a scheduler's configuration.

    schedule: of the noise.
    offset: added to every timestep.
    to_clean: whether the last step ends at the clean sample, rather than at timestep 0.
    """

    schedule: NoiseSchedule
    offset: int = 1
    to_clean: bool = False


def find_ddim(name: str, cache_dir: str | None = None) -> DDIM:
    """The schedule of a model that is named for its scheduler alone.

    Args:
        name: a local diffusers folder, or a hub id.
        cache_dir: of the hub's files; the hub's own place unless given.

    Raises:
        CarvError: it is not there, or its scheduler is not variance preserving.
    """
    config: dict[str, Any] = STABLE_DIFFUSION_DDIM
    file = Path("scheduler") / "scheduler_config.json"
    if name not in KNOWN:
        folder = find_part(name, [file.as_posix()], "ddim_scheduler_name_or_path", "a diffusers folder", cache_dir)
        file = folder / file
        config = read_json(file)
    try:
        schedule = NoiseSchedule.from_config(config)
        if schedule.family != "vp":
            raise CarvError("it is of flow matching or EDM, and here a DDPM, DDIM or Euler scheduler is needed.")
    except CarvError as error:
        raise CarvError(f"ddim_scheduler_name_or_path is {name}, which cannot be used: {file}: {error}") from error
    return DDIM(schedule, int(config.get("steps_offset", 0)), bool(config.get("set_alpha_to_one", True)))


def find_controlnet(name: str, option: str, cache_dir: str | None = None) -> Path:
    """The folder of a whole ControlNet.

    Args:
        name: a local folder with config.json and weights, or a hub id.
        option: that names it, for messages.
        cache_dir: of the hub's files; the hub's own place unless given.

    Raises:
        CarvError: there is none, it is not whole, or it is of another class.
    """
    what = "a ControlNet's folder (it holds config.json and the weights)"
    weights = "diffusion_pytorch_model"
    folder = find_part(name, ["config.json", f"{weights}.safetensors", f"{weights}.bin"], option, what, cache_dir)
    kind = read_json(folder / "config.json").get("_class_name")
    if kind != CONTROLNET:
        raise CarvError(f"{option} is {name}, and {folder} holds a {kind}, no {CONTROLNET}: name {what}.")
    check_weights(folder.parent, folder.name)
    return folder


def find_part(name: str, files: list[str], option: str, what: str, cache_dir: str | None = None) -> Path:
    """The folder that holds `files`, the first of which must be there.

    Args:
        name: a local folder, or a hub id.
        files: names of files in it; of several with one stem the first that there is will do.
        option: that names it, for messages.
        what: is to be named, for messages.
        cache_dir: of the hub's files; the hub's own place unless given.

    Raises:
        CarvError: one sentence that says why it is not there.
    """
    path = expanded(name)
    if path.is_dir() or looks_like_path(name):
        if not (path / files[0]).is_file():
            why = f"{path} holds no {files[0]}" if path.is_dir() else f"there is no folder {path.absolute()}"
            raise CarvError(f"{option} is {name}, and {why}: name {what}, or a hub id.")
        return path.absolute()
    import huggingface_hub

    request: dict[str, Any] = {"allow_patterns": files, "cache_dir": cache_dir}
    reason = "it is not in the hub's cache, and this is offline mode"
    for local in (True, False):
        if not local and offline_mode():
            break
        try:
            more = {} if local else {"etag_timeout": HUB_TIMEOUT_S}
            folder = Path(huggingface_hub.snapshot_download(name, local_files_only=local, **request, **more))
            if (folder / files[0]).is_file():
                return folder
            reason = f"the hub's copy has no {files[0]}"
        except Exception as error:
            reason = reason if local else hub_reason(error)
    raise CarvError(f"{option} is {name}, which is no local folder, and {reason}: name {what}, or another hub id.")
