"""Writing files so that a kill or a full disk never leaves half of one, and opening those of others."""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import stat
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from carv_3d.errors import CarvError, shown

IRREGULAR = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip
WRITTEN = {".csv", ".gif", ".glb", ".html", ".json", ".mp4", ".mtl", ".obj", ".png", ".yaml"}  # no folder that is made
FULL = {
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("your quota of the disk is full", "free some space of yours"),
    errno.EFBIG: ("a file may not be so large here", "raise the limit (ulimit -f unlimited), or take another disk,"),
}
PATIENCE = 0.1  # seconds
LONGEST_PATH = 2000  # bytes; what is written below it must fit too, into Linux's 4,096


class MissingFileError(CarvError):
    """There is no such file."""


def explain_os_error(error: OSError, path: Path, doing: str = "write") -> CarvError:
    """One sentence for what the operating system refused; `doing` is the verb ("write", "read")."""
    if error.errno in FULL:
        what, fix = FULL[error.errno]
        return CarvError(f"{what}: {path} could not be written; {fix} and try again")
    if error.errno == errno.ENAMETOOLONG:
        name = shown(max(path.parts, key=len, default=""), 40)
        return CarvError(f"the name {name} is too long for this file system; give a shorter one")
    reason = error.strerror or str(error)
    return CarvError(f"cannot {doing} {path}: {reason}; choose another place or change its permissions")


@contextmanager
def os_errors_explained() -> Iterator[None]:
    """An OSError of the block that names a path becomes a CarvError: locked, too long a name, a disk that is full."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not isinstance(error.filename, (str, bytes)):
            raise
        raise explain_os_error(error, Path(os.fsdecode(error.filename)), "use") from error


def expanded(path: str | Path) -> Path:
    """`path` with "~" and "~name" as the home folder; CarvError for no such user, or for what no path can be."""
    try:
        if "\0" in str(path) or len(os.fsencode(path)) > LONGEST_PATH:
            raise CarvError(f"{shown(str(path))} holds the character NUL, or is too long for a path; give another")
        return Path(path).expanduser()
    except UnicodeEncodeError as error:
        raise CarvError(f"{shown(str(path))} holds characters that no path can; give another") from error
    except RuntimeError as error:
        raise CarvError(f"{path} begins with ~ and the name of nobody here; write the folder out") from error


def open_file(path: Path, fix: str, limit: int | None = None) -> BinaryIO:
    """Open a regular file for reading bytes: the one way to files that others made.

    A pipe would be waited for, and a device read without end.

    Args:
        path: of the file, or of a link to it.
        fix: what messages end in.
        limit: the most bytes that the file may have.

    Raises:
        CarvError: no regular file, larger, or unreadable; MissingFileError where there is none.
    """
    try:
        before = os.stat(path)  # opening alone can change a device
        kind = IRREGULAR.get(stat.S_IFMT(before.st_mode))
        if kind is not None:
            raise CarvError(f"{path} is {kind}, and a file is due; {fix}")
        if limit is not None and before.st_size > limit:
            raise CarvError(f"{path} is larger than {limit / 2**20:g} MiB, the most that is read of such a file; {fix}")
        nonblocking = getattr(os, "O_NONBLOCK", 0)  # a pipe may have taken its place
        return open(path, "rb", opener=lambda name, flags: os.open(name, flags | nonblocking))
    except FileNotFoundError:
        raise MissingFileError(f"{path} is missing; {fix}") from None
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    except ValueError as error:
        if isinstance(error, CarvError):
            raise
        raise CarvError(f"{str(path)!r} is no name that a file can have; {fix}") from None


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in a folder and below, without links; what vanishes meanwhile does not count."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                state = os.lstat(os.path.join(place, name))
                total += state.st_size if stat.S_ISREG(state.st_mode) else 0
    return total


def shown_path(path: Path | str) -> str:
    """A path as text that can be written anywhere: a byte that is no UTF-8 becomes a backslash, x and two digits."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def clear_half_written(folder: Path) -> None:
    """Remove what a kill during `write_via` left in `folder`."""
    for half in folder.glob(".*.tmp*"):
        half.unlink(missing_ok=True)


def write_via(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file next to `path` (same suffix), then put it in `path`'s place at once.

    `path` holds either its old content or the whole new one, whatever happens. The data is on the disk
    (fsync) before the name changes.

    Raises:
        CarvError: the disk is full or the place cannot be written; the old file is intact.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise explain_os_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path`, all of it or nothing; raises CarvError as `write_via` does.

    A byte of a path that is no UTF-8 is written as a backslash, u and four digits.
    """
    payload = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    write_via(path, lambda temporary: temporary.write_bytes(payload))


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """An empty folder next to `folder` to fill, which takes its place, with all that was in it, at the end.

    If the block raises or is killed, `folder` holds what it held. (A kill in the instant between the two renames leaves
    it whole as `.<name>-old`; the next call puts it back first.)

    Raises:
        CarvError: the disk is full or the place cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    new, old = (folder.with_name(f".{folder.name}-{word}") for word in ("new", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _put_back(old, folder)
        shutil.rmtree(new, ignore_errors=True)  # a kill may have left it
        new.mkdir()
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                with open(file, "rb+") as handle:
                    os.fsync(handle.fileno())
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    finally:
        _put_back(old, folder)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _put_back(old: Path, folder: Path) -> None:
    if old.exists() and not folder.exists():
        old.rename(folder)


def slug(text: str, limit: int = 48) -> str:
    """`text` as a folder name of [a-z0-9-] alone, never empty.

    >>> slug("A Red Mug!"), slug("../../x"), slug("<>")
    ('a-red-mug', 'x', 'prompt')
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii").lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:limit].strip("-") or "prompt"


def unused(path: Path) -> Path:
    """`path`, or the first of `path`-2, `path`-3 ... that is not there, or empty and nobody's (left by a kill)."""
    free, number = path, 2
    while free.exists() and not _abandoned(free):
        free, number = path.with_name(f"{path.name}-{number}"), number + 1
    return free


def _abandoned(folder: Path) -> bool:
    try:
        with locked(folder, 0):
            return not any(folder.iterdir())
    except (CarvError, OSError):  # at work, or no folder
        return False


def newest_run(path: Path, accepted: Callable[[Path], bool] = lambda folder: True) -> Path | None:
    """The accepted run begun or resumed last of `path`, `path`-2, `path`-3 ..., by the time of its config.yaml.

    Some of them may be gone; None where all are.
    """
    runs = []
    for config in path.parent.glob(f"{glob.escape(path.name)}*/config.yaml"):
        number = re.fullmatch(rf"{re.escape(path.name)}(?:-(\d+))?", config.parent.name)
        if number is not None and accepted(config.parent):
            runs.append((config.stat().st_mtime_ns, int(number[1] or 1), config.parent))
    return max(runs)[2] if runs else None


def check_unused(path: Path, fix: str = "choose another --out") -> None:
    """Raises CarvError, ending in `fix`, where `path` is a file, a link to nothing, a full folder, or unreadable."""
    try:
        if path.is_symlink() and not path.exists():
            raise CarvError(f"{path} is a link to {os.readlink(path)}, which is not there; make that folder, or {fix}")
        if path.exists() and not path.is_dir():
            raise CarvError(f"{path} is there and is no folder; {fix.partition(', or ')[0]}")  # nothing to resume
        if path.exists() and any(path.iterdir()):
            raise CarvError(f"{path} is not an empty folder; {fix}")
    except OSError as error:
        raise explain_os_error(error, path, "read") from error


def check_writable(path: Path) -> None:
    """Raises CarvError where `path`, or the folder that it would be made in, cannot be written; leaves nothing."""
    try:
        here = next(p for p in (path, *path.absolute().parents) if p.exists())
        if not here.is_dir() or not os.access(here, os.W_OK | os.X_OK):
            reason = errno.EACCES if here.is_dir() else errno.ENOTDIR
            raise OSError(reason, os.strerror(reason))
        _probe(here)  # there are systems, such as /proc, that allow it and take no file
    except OSError as error:
        raise explain_os_error(error, path) from error


def _probe(folder: Path) -> None:
    probe = folder / f".{os.getpid()}.probe"
    probe.touch()
    probe.unlink()


def user_cache(environment: Mapping[str, str] = os.environ) -> str:
    """Where programs of this user keep their caches; ~ stands for the home folder, which need not be there."""
    return environment.get("XDG_CACHE_HOME") or "~/.cache"


def check_cache(path: str | Path, fix: str) -> Path:
    """The cache with ~ written out; CarvError, ending in `fix`, without a home folder or where it cannot be written."""
    try:
        place = Path(path).expanduser()
        check_writable(place)
    except (RuntimeError, CarvError) as error:
        raise CarvError(f"the cache {path} cannot be written; {fix}") from error
    return place


def make_folder(path: Path) -> None:
    """Make `path` and its parents, and see that files can be made in it; raises CarvError in one sentence.

    A folder in it that is named as files are, such as report.html, is refused: the file would be written at the end.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with os.scandir(path) as entries:
            taken = [e.name for e in entries if e.is_dir(follow_symlinks=False) and Path(e.name).suffix in WRITTEN]
        if taken:
            raise CarvError(f"{path / min(taken)} is a folder, and its name is a file's; move it away")
        _probe(path)
    except OSError as error:
        raise explain_os_error(error, path) from error


@contextmanager
def folder_for(path: Path) -> Iterator[None]:
    """`make_folder(path)` before the work in the block; afterwards, what was made for it and holds nothing is gone."""
    made = _not_there(path)
    try:
        make_folder(path)
        yield
    finally:
        _remove_empty(made)


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """`folder_for(path)` and `locked(path)` in one: where another run has the folder, nothing is removed."""
    made = _not_there(path)
    try:
        make_folder(path)
    except CarvError:
        _remove_empty(made)
        raise
    with locked(path):
        try:
            yield
        finally:
            _remove_empty(made)


def _not_there(path: Path) -> list[Path]:
    return [p for p in (path, *path.parents) if not p.exists()]


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:  # the innermost first
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def locked(folder: Path, patience: float = PATIENCE, fix: str = "choose another --out") -> Iterator[None]:
    """Hold `folder` for this process (a kill frees it); CarvError where another run is at work in it.

    patience: seconds to try again, since a list of runs holds each folder for an instant. fix: instead of waiting.
    """
    try:
        import fcntl
    except ImportError:  # a platform without flock goes without the check
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        begin = time.monotonic()
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < begin + patience:
                    time.sleep(0.01)
                    continue
                raise CarvError(f"another run is at work in {folder}; wait for it, or {fix}") from None
            except OSError:  # a file system without locks goes without the check too
                pass
            break
        yield
    finally:
        os.close(handle)


@contextmanager
def claimed_part(folder: Path, part: int) -> Iterator[bool]:
    """Whether part `part` (0, 1, ...) of the work in `folder` is this process's within the block.

    False where another process has it now; a kill frees it. Without locks (a platform, a file system) it is always
    True, and parts may be made twice.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    with open(folder / ".claims", "ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_NB | fcntl.LOCK_EX, 1, part)
        except (BlockingIOError, PermissionError):  # the two that POSIX allows for "taken"
            yield False
            return
        except OSError:
            pass
        yield True
