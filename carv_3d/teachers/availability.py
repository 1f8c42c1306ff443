"""From a model's name to a folder on this machine, or one sentence that says why there is none.

The order is: the built-in carv-tiny, a local folder, the Hugging Face cache, the hub. Nothing
is loaded here, and without a network the answer comes at once.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from carv_3d.errors import CarvError, first_line
from carv_3d.io.files import check_cache, expanded
from carv_3d.teachers.families import BUILT_IN, STABLE_DIFFUSION, Family
from carv_3d.teachers.model_folder import FIX, HALF, WrongFamily, check_family, check_folder, weight_stems
from carv_3d.teachers.withdrawn import GONE

log = logging.getLogger(__name__)

HUB_TIMEOUT_S = 10.0


def resolve_model(
    name_or_path: str,
    local_files_only: bool = False,
    cache_dir: str | None = None,
    family: Family = STABLE_DIFFUSION,
) -> Path:
    """The folder of a whole, usable model of the family.

    Args:
        name_or_path: "carv-tiny", a local diffusers folder, or a hub id such as "owner/name".
        local_files_only: never ask the hub.
        cache_dir: where the hub's files are kept; the hub's own place if None.
        family: what the model must be.

    Raises:
        CarvError: what was looked for, where, why it is not there, the fix.
    """
    name = str(name_or_path).strip()
    if not name:
        raise CarvError(f"pretrained_model_name_or_path is empty; {FIX}.")
    if name in BUILT_IN:
        return _built_in(name, family)
    path = expanded(name)
    if path.is_dir():
        check_folder(path, family)
        return path
    if path.is_file():
        raise CarvError(
            f"{path} is a single file, and here a diffusers folder is needed: convert it with diffusers' "
            f"StableDiffusionPipeline.from_single_file(...).save_pretrained(FOLDER), {FIX}."
        )
    if looks_like_path(name):
        raise CarvError(f"no diffusion model at {path.absolute()}: there is no such folder; {FIX}.")
    return _from_hub(name, local_files_only, cache_dir, family)


def _built_in(name: str, family: Family) -> Path:
    folder = BUILT_IN[name]
    if not (folder / "model_index.json").is_file():
        raise CarvError(
            f"the built-in model {name} is not in this installation ({folder} is missing or empty): "
            "install the package again, or name a local diffusers folder as pretrained_model_name_or_path."
        )
    check_folder(folder, family)
    return folder


def is_local(name_or_path: str) -> bool:
    """Whether `resolve_model` does without the hub: a built-in model, a folder or file, or what can be no hub id."""
    name = str(name_or_path).strip()
    return name in BUILT_IN or expanded(name).exists() or looks_like_path(name)


def could_be_fetched(name_or_path: str) -> bool:
    """Whether the hub could be expected to deliver it: a valid id, not known to be withdrawn, not in offline mode."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    name = str(name_or_path).strip()
    if is_local(name) or name in GONE or offline_mode():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def offline_mode() -> bool:
    """Whether the hub's library is not to ask the hub."""
    from huggingface_hub import constants

    return bool(getattr(constants, "HF_HUB_OFFLINE", False))


def looks_like_path(name: str) -> bool:
    """Whether a name can be no hub id."""
    return name.startswith((".", "/", "~")) or "\\" in name or name.count("/") != 1 or name.endswith("/")


def _from_hub(name: str, local_files_only: bool, cache_dir: str | None, family: Family) -> Path:
    import huggingface_hub
    from huggingface_hub import constants

    cache = cache_dir or getattr(constants, "HF_HUB_CACHE", None) or constants.HUGGINGFACE_HUB_CACHE
    try:
        folder = Path(huggingface_hub.snapshot_download(name, cache_dir=cache_dir, local_files_only=True))
        check_folder(folder, family)
        return folder
    except WrongFamily:
        raise
    except CarvError as error:  # a download that was broken off
        in_cache = f"its copy in the cache {cache} is not whole ({str(error).split(';')[0]})"
    except Exception as error:
        log.debug("not in the cache: %s", error)
        in_cache = f"it is not in the cache {cache}"
    sought = f"no diffusion model {name!r}: there is no folder of that name in {os.getcwd()}, {in_cache}"
    if local_files_only or offline_mode():
        why = "this is offline mode, so the hub is" if offline_mode() else "the hub was"
        raise CarvError(f"{sought}, and {why} not asked{_mirror(name)}; {FIX}.")
    check_cache(cache, "set HF_HOME to a folder that can be")
    try:
        info = huggingface_hub.HfApi().model_info(name, timeout=HUB_TIMEOUT_S)
        files = needed_files((entry.rfilename for entry in info.siblings or []), family)
        for expected in (["model_index.json"], files):  # the whole only once it is known to be of the family
            folder = Path(
                huggingface_hub.snapshot_download(
                    name, revision=info.sha, cache_dir=cache_dir, allow_patterns=expected, etag_timeout=HUB_TIMEOUT_S
                )
            )
            check_family(folder, family)
    except WrongFamily:
        raise
    except Exception as error:
        raise CarvError(f"{sought}, and {hub_reason(error)}{_mirror(name)}; {FIX}.") from error
    check_folder(folder, family)
    return folder


def needed_files(listing: Iterable[str], family: Family = STABLE_DIFFUSION) -> list[str]:
    """Of a hub repository's files, those that are read: configs, tokenizer, and one copy of each weight.

    safetensors rather than .bin, fp16 where there is nothing else, never non_ema, no safety checker.

    Args:
        listing: names of files, "/" between folders.
        family: whose parts.
    """
    names = sorted(listing)
    expected = [name for name in names if name == "model_index.json"]
    for part in family.components:
        inside = [name for name in names if name.startswith(f"{part}/") and name.count("/") == 1]
        expected += [name for name in inside if name.endswith((".json", ".txt", "/spiece.model", "/tokenizer.model"))]
        if part in family.classes:
            copies = (
                [name for name in inside if _is_weight(name, f"{part}/{stem}{variant}", suffix)]
                for variant, (stem, suffix) in itertools.product(("", HALF), weight_stems(part))
            )
            expected += next(filter(None, copies), [])
    return expected


def _is_weight(name: str, stem: str, suffix: str) -> bool:
    # NAME.safetensors, or a shard NAME-00001-of-00002.safetensors
    middle = name[len(stem) : -len(suffix)]
    return name.startswith(stem) and name.endswith(suffix) and (not middle or middle.startswith("-0"))


def hub_reason(error: BaseException) -> str:
    """Why the hub did not deliver, as the rest of a sentence."""
    names = {cls.__name__ for cls in type(error).__mro__}
    response: Any = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if "GatedRepoError" in names:
        return "the hub gives it only to those who accepted its licence (accept it there, then `hf auth login`)"
    if names & {"RepositoryNotFoundError", "DisabledRepoError"} or status in (401, 404, 410):
        return "the hub has no public model of that name"
    if status == 403:
        return "access was refused (403: by the hub, or by a proxy on the way to it)"
    if names & {"HFValidationError"}:
        return "that is no valid name on the hub either"
    if "OfflineModeIsEnabled" in names:
        return "this is offline mode, so the hub is not asked"
    if names & {"LocalEntryNotFoundError", "ConnectionError", "TransportError", "TimeoutError", "Timeout"}:
        return f"the hub cannot be reached from here ({type(error).__name__}: {first_line(error)})"
    return f"the hub did not deliver it ({type(error).__name__}: {first_line(error)})"


def _mirror(name: str) -> str:
    if name not in GONE:
        return ""
    when, mirror = GONE[name]
    return f" (it was withdrawn in {when}; {mirror} is a public mirror)"
