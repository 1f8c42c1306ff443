"""Which folder a run has, and what may change when it is resumed; nothing is written here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from carv_3d.errors import CarvError
from carv_3d.io.files import check_unused, newest_run, unused
from carv_3d.io.structured import differing_keys, look_up
from carv_3d.runs.names import CHECKPOINT, CONFIG, METRICS


def new_folder(
    out: Path | None, default: Path, fix: str = "choose another --out, or resume the run in it with --resume"
) -> Path:
    """The folder of new work: `out`, or `default` with a number behind it where that is in use.

    Raises:
        CarvError: `out` is in use; ends in `fix`.
    """
    if out is None:
        return unused(default)
    check_unused(out, fix)
    return out


def newest_folder(default: Path, is_the_run: Callable[[Path], bool]) -> Path:
    """The newest of a run's default folders of which `is_the_run` holds; what it raises as CarvError counts as no.

    Raises:
        CarvError: there is none; names the newest that cannot be read.
    """
    damaged: list[CarvError] = []

    def accepted(folder: Path) -> bool:
        try:
            return is_the_run(folder)
        except CarvError as error:  # a damaged config.yaml
            damaged.append(error)
            return False

    folder = newest_run(default, accepted)
    if folder is None and damaged:
        raise damaged[-1]
    if folder is None:
        raise CarvError(f"there is no run to resume in {default}; begin one without --resume")
    return folder


def refuse_file(folder: Path) -> None:
    """CarvError where a file, of a run perhaps, or a device is named in place of the run's folder."""
    if folder.is_file():
        raise CarvError(f"{folder} is a file; name the folder of a run that it belongs to")
    if folder.exists() and not folder.is_dir():
        raise CarvError(f"{folder} is no folder of a run; name one, such as outputs/a-red-mug-0")


def check_resumable(folder: Path) -> None:
    """CarvError where there is no run in `folder`, or one that has lost its config.yaml."""
    if not (folder / CONFIG).exists():
        left = next((name for name in (CHECKPOINT, METRICS) if (folder / name).exists()), None)
        if left is not None:
            raise CarvError(
                f"{folder} has a {left} but no {CONFIG}, which says what the run is; restore it, or begin a new run "
                "with another --out"
            )
        raise CarvError(f"there is no run to resume in {folder}; begin one without --resume")


def is_changeable(key: str, changeable: Sequence[str]) -> bool:
    """Whether --resume may change an option: it is listed, or begins with a listed name that ends in "." or "_"."""
    return any(key == name or (name[-1] in "._" and key.startswith(name)) for name in changeable)


def check_unchanged(
    folder: Path, stored: Mapping[str, Any], asked: Mapping[str, Any], changeable: Sequence[str]
) -> None:
    """CarvError where a resumed run would have another value of an option that is not `changeable`."""
    for key in differing_keys(stored, asked):
        if not is_changeable(key, changeable):
            raise CarvError(
                f"the run in {folder} has {key} = {look_up(stored, key)!r}, and --resume cannot change it to "
                f"{look_up(asked, key)!r}; leave it, or begin a new run with another --out"
            )
