"""The command line as a test calls it: its refusals, and what a fresh process does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from carv_3d.cli import main as cli
from carv_3d.runs.checkpoint import load_checkpoint


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence with which `carv` refuses `arguments`; nothing may have been written here."""
    before = sorted(os.listdir())
    assert cli.main(list(arguments)) == 2
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if line.startswith("carv: ")]
    assert "Traceback" not in out + err
    assert sorted(os.listdir()) == before
    return line


def loaded_by(imports: str, *heavy: str) -> set[str]:
    """Which modules of `heavy`, by the beginning of their names, a fresh process has after `imports`."""
    code = f"import sys; {imports}; print(*(m for m in sys.modules if m.startswith({heavy!r})))"
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def kill_at_first_checkpoint(out: Path, *arguments: str) -> int:
    """Start `carv ARGUMENTS --out OUT` in a process and kill it once it has saved; returns the step that is saved."""
    paths = [str(Path(cli.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    threads = str(torch.get_num_threads())  # sums over other numbers of threads differ in the last bit
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": threads}
    command = [sys.executable, "-m", "carv_3d", *arguments, "--out", str(out)]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "checkpoint").exists():
        assert child.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    return int(load_checkpoint(out / "checkpoint")[0]["step"])
