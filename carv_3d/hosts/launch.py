"""threestudio's own launcher, in its own process: `python -m carv_3d.hosts.launch CHECKOUT/launch.py WORD ...`.

The process is threestudio's, with one difference: what a user can fix ends it with a sentence in place of a traceback.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from carv_3d.errors import CarvError

PACKAGE = Path(__file__).resolve().parents[2]


def become_launcher(root: Path, words: Sequence[str]) -> NoReturn:
    """Replace this process by threestudio's launcher, in the folder of the checkout.

    Args:
        root: of the checkout.
        words: for launch.py, one argument each; no shell reads them.
    """
    command = [sys.executable, "-m", "carv_3d.hosts.launch", str(root / "launch.py"), *words]
    paths = [str(PACKAGE), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
    os.chdir(root)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, command, environment)


def main(words: Sequence[str]) -> int:
    """Run launch.py, the first word, with the others; its status, or 2 and a sentence for a CarvError."""
    launcher, *rest = words
    sys.argv = [launcher, *rest]
    sys.path[0] = str(Path(launcher).parent)  # as `python launch.py` has it
    try:
        runpy.run_path(launcher, run_name="__main__")
    except CarvError as error:
        print(f"carv: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
