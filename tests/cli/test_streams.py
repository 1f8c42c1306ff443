"""Streams that are lost or narrow, and Ctrl-C pressed five times: the work is done, and at most one line is said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# `carv` with a command in place of its own: what it shows comes by print and by a run's display
COMMAND = """
import atexit, contextlib, pathlib, sys, time
from carv_3d.cli import main as cli
from carv_3d.runs.progress import Display, StopSignals

def command(words):
    display = Display()
    for step in range(2000):
        display.say(f"step {step} of a caf\\u00e9 \\u00b1 1")
        print("and a line", step)
    print("more", file=sys.stderr)
    pathlib.Path("done").touch()
    return 0

def waits(words):
    print("ready", flush=True)
    with StopSignals() if words[1:] else contextlib.nullcontext():
        try:
            time.sleep(30)
        finally:
            time.sleep(0.3)

atexit.register(time.sleep, 0.5)
cli._dispatch = waits if "waits" in sys.argv else command
sys.exit(cli.main())
"""


def start(folder: Path, *words: str, **streams: object) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": ""}
    arguments = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words], cwd=folder, env=environment, text=True, **arguments
    )


@pytest.mark.parametrize(("words", "status"), [(["generate", "x"], 0), (["generate", "--dry-run"], 141)])
def test_a_reader_that_leaves_ends_no_run(words: list[str], status: int, tmp_path: Path) -> None:
    with start(tmp_path, *words) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "step 0 of a caf? ? 1\n"  # the encoding lacks both letters
        child.stdout.close()
        assert child.stderr.read() == "more\n"
        assert child.wait() == status
    assert (tmp_path / "done").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize(("words", "status"), [(["generate", "x"], 0), (["doctor"], 2)])
def test_a_full_disk_behind_stdout_is_one_line(words: list[str], status: int, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full, start(tmp_path, *words, stdout=full) as child:
        _, said = child.communicate()
    assert said == "carv: nothing more is shown here: No space left on device\nmore\n"
    assert child.returncode == status
    assert (tmp_path / "done").exists()


def test_both_streams_may_be_lost(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with start(tmp_path, "generate", stdout=writer, stderr=writer) as child:
        os.close(writer)
        assert child.wait() == 0
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("in_steps", [False, True])
def test_five_interrupts_are_one_line(in_steps: bool, tmp_path: Path) -> None:
    with start(tmp_path, "waits", *["in steps"] * in_steps, preexec_fn=heed) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        for _ in range(5):
            child.send_signal(signal.SIGINT)
            try:
                child.wait(0.15)
            except subprocess.TimeoutExpired:
                continue
        _, said = child.communicate(timeout=20)
    assert [line for line in said.splitlines() if line and not line.startswith("Stopping")] == ["carv: interrupted"]
    assert child.returncode == 130


def heed() -> None:
    """A shell's background job ignores Ctrl-C, and its children do too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_streams_that_were_never_there_are_the_null_device(tmp_path: Path) -> None:
    script = (
        "import os, sys; from carv_3d.cli.streams import open_closed_streams; open_closed_streams()\n"
        "numbers = [s.fileno() for s in (sys.stdin, sys.stdout, sys.stderr)]\n"
        "print('nobody sees this', file=sys.stderr, flush=True)\n"
        "with open('file', 'w') as file: file.write(repr((numbers, sys.stdin.read(), file.fileno())))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-S", "-c", script]
    assert subprocess.run(shell, cwd=tmp_path, env=environment, check=False).returncode == 0
    assert (tmp_path / "file").read_text() == "([0, 1, 2], '', 3)"
