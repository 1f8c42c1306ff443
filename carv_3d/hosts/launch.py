"""threestudio's own launcher, in its own process: `python -m carv_3d.hosts.launch CHECKOUT/launch.py WORD ...`.

The process is threestudio's, with one difference: what a user can fix ends it with a sentence in place of a traceback.
"""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from carv_3d.errors import CarvError, first_line

PACKAGE = Path(__file__).resolve().parents[2]
LOST_RANK = r"(?i)connection (closed|reset) by peer|connection refused|pair closure|remote process exited|broken pipe"
RESUME = "resume=CKPT continues from the last checkpoint"


def run_launcher(root: Path, words: Sequence[str]) -> int:
    """Run threestudio's launcher in the folder of the checkout, and wait for it; its status.

    A launcher that was killed gets a sentence, and the status that a shell gives: 128 and the signal's number.

    Args:
        root: of the checkout.
        words: for launch.py, one argument each; no shell reads them.
    """
    command = [sys.executable, "-m", "carv_3d.hosts.launch", str(root / "launch.py"), *words]
    paths = [str(PACKAGE), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
    child = subprocess.Popen(command, cwd=root, env=environment)
    with _signals_passed_on(child):
        status = child.wait()
    if status >= 0:
        return status
    name = signal.Signals(-status).name
    why = "memory ran out, or another process of the run ended" if name == "SIGKILL" else "see above"
    print(f"carv: threestudio was ended by {name} ({why}); {RESUME}", file=sys.stderr)
    return 128 - status


@contextmanager
def _signals_passed_on(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ctrl-C reaches the child by itself, which ends in its own way; a request to end is passed on."""

    def pass_on(number: int, frame: Any) -> None:
        child.send_signal(number)

    actions: dict[int, Any] = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: pass_on}
    before = {number: signal.signal(number, action) for number, action in actions.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def explained(run: Callable[[], object]) -> int:
    """0 after `run()`, or 2 and a sentence for what a user can fix and for the loss of another process of the run."""
    try:
        run()
    except CarvError as error:
        print(f"\ncarv: {error}", file=sys.stderr)  # on a line of its own, after a bar of progress
    except RuntimeError as error:
        if re.search(LOST_RANK, str(error)) is None:
            raise
        print(f"\ncarv: another process of this run ended ({first_line(error)}); {RESUME}", file=sys.stderr)
    else:
        return 0
    return 2


def main(words: Sequence[str]) -> int:
    """Run launch.py, the first word, with the others; see `explained`."""
    launcher, *rest = words
    sys.argv = [launcher, *rest]
    sys.path[0] = str(Path(launcher).parent)  # as `python launch.py` has it
    return explained(lambda: runpy.run_path(launcher, run_name="__main__"))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
