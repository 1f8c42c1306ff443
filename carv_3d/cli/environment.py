"""What a command takes from its environment, settled once, before anything heavy is loaded."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import warnings
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

from carv_3d.cli.threads import settle_threads
from carv_3d.errors import CarvError
from carv_3d.io.files import check_cache, user_cache


def settle_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Threads, the backend of charts, switches for debugging, and the caches of libraries.

    Charts are files, so a backend that was inherited from a notebook and may not be here is set aside. So are
    numba's switch for debugging, with which a step takes hours, and warnings as errors, since libraries warn. Where the
    user has no cache, that of compiled loops lies under TMPDIR.

    Raises:
        CarvError: the working folder is gone, or NUMBA_CACHE_DIR, or any folder, cannot be written.
    """
    _check_working_folder()
    settle_threads(environment)
    environment["MPLBACKEND"] = "agg"
    if "NUMBA_DISABLE_JIT" in environment:
        environment["NUMBA_DISABLE_JIT"] = "0"
    if any(option.startswith("error") for option in sys.warnoptions):  # of -W and PYTHONWARNINGS
        warnings.simplefilter("default")
    if environment.get("NUMBA_CACHE_DIR"):
        check_cache(environment["NUMBA_CACHE_DIR"], "set NUMBA_CACHE_DIR to a folder that can be, or unset it")
        return
    try:
        check_cache(user_cache(environment), "")
    except CarvError:
        folder = _private_folder()
        environment["NUMBA_CACHE_DIR"] = folder
        environment.setdefault("MPLCONFIGDIR", folder)


def _check_working_folder() -> None:
    """CarvError without one: what torch's libraries would then say is of themselves."""
    try:
        os.getcwd()
    except OSError as error:
        raise CarvError(
            f"the working folder was removed or cannot be read ({error.strerror}); change to one that is there: cd ~"
        ) from error


def _private_folder() -> str:
    """Under TMPDIR, the same at each call and this user's alone: numba runs what lies in its cache."""
    user = os.getuid()
    try:
        path = Path(tempfile.gettempdir()) / f"carv_3d-{user}"
    except FileNotFoundError as error:
        raise CarvError("no temporary folder can be written; set TMPDIR to one that can be") from error
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    state = path.lstat()
    private = stat.S_ISDIR(state.st_mode) and state.st_uid == user and not state.st_mode & 0o077
    return str(path) if private else tempfile.mkdtemp(prefix="carv_3d-")
