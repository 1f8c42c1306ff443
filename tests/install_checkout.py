"""A checkout with install.sh whose Python and pip are stand-ins that record their calls."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent

FAKE_PYTHON = """#!/bin/bash
# Stands in for python3: makes a "venv" that is a copy of itself, and records every call of pip.
case "$*" in
  *sys.version_info*) echo "${FAKE_VERSION-3.11}"; exit ${FAKE_OLD:-0} ;;
  "-m venv "*)
    [ -z "${FAKE_NO_VENV:-}" ] || { echo "$FAKE_NO_VENV"; exit 1; }
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *"-m pip"*)
    echo "$*" >>"$FAKE_LOG"
    case "$*" in
      *--no-index*) exit ${FAKE_NO_WHEEL:-0} ;;
      *download.pytorch.org*) exit ${FAKE_NO_CPU_INDEX:-0} ;;
      *" -e "*)
        [ -z "${FAKE_HANGS:-}" ] || { sleep 30 & echo "$! $$" >"$FAKE_HANGS"; wait; }
        [ -z "${FAKE_FAIL:-}" ] || { echo "disk on fire"; exit 1; } ;;
      *" list "*) printf '%s\n' torch==2.13.0+cpu numpy==2.4.6 ;;
    esac ;;
  *"import torch"*) exit ${FAKE_NO_TORCH:-1} ;;
  *platform*) echo "# tried with Python 3.11.2 on Linux x86_64" ;;
esac
"""


class Checkout:
    """A copy of install.sh and pyproject.toml with the stand-in first on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        self.bin = folder / "bin"
        self.log = folder / "pip.log"
        self.folder.mkdir()
        self.bin.mkdir()
        for name in ("install.sh", "pyproject.toml"):
            shutil.copy(ROOT / name, self.folder)
        self.program("python3", FAKE_PYTHON)
        self.program("nvidia-smi", "#!/bin/bash\nexit 9\n")

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text.replace("\\\n", "\n"))
        (self.bin / name).chmod(0o755)

    def environment(self, **variables: str) -> dict[str, str]:
        """With the stand-ins in front, and without what the caller's own has."""
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "CARV_TORCH")}
        return {**clean, "PATH": path, "FAKE_LOG": str(self.log), **variables}

    def call(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Of install.sh by its whole path, from the folder above."""
        return self.run(str(self.folder / "install.sh"), *command, **variables)

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Of any program."""
        return subprocess.run(
            words,
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder.parent,
        )

    def pip_calls(self) -> list[str]:
        """The calls of pip since the last time that this was asked."""
        calls = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return calls
