"""One input of the fuzz command: what it is, and how it ends."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import signal
import socket
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from carv_3d.cli.main import main
from carv_3d.errors import CarvError
from carv_3d.runs.run import Run

LIMIT_S = 60.0  # of one input, of computing; a machine with other work gives WAITS times that to the clock
WAITS = 3
MORE_MEMORY = 3 * 2**30  # bytes that an input may take
MOST_STEPS = 3  # of a run
LONGEST = 1500  # characters of a refusal
FINE, REFUSED, TRACEBACK, HANG, WRONG = "fine", "refused", "traceback", "hang", "wrongly accepted"
BAD = (TRACEBACK, HANG, WRONG)
CANARY = "canary"  # a file that code from an input would make
Special = str  # a thing that is no regular file, see `make_special`
SPECIALS = (
    "<absent>",
    "<folder>",
    "<fifo>",
    "<socket>",
    "<link loop>",
    "</dev/zero>",
    "</dev/null>",
    "<dangling link>",
)


class Hang(BaseException):
    """The time of an input is over."""


class Enough(BaseException):
    """A run trains: it is not waited for."""


@dataclass(frozen=True)
class Case:
    """One input.

    Args:
        note: what is odd about it, in a few words.
        words: the command line, where it is one.
        call: what is called otherwise.
        parts: folders of the base that it may read and write.
        files: what lies at paths below the working folder in place of what the base has.
        must_refuse: whether the right answer is known to be a refusal.
        light: without the charts of a comparison, which take most of its time.
    """

    note: str
    words: tuple[str, ...] = ()
    call: Callable[[], Any] | None = None
    parts: tuple[str, ...] = ()
    files: Mapping[str, bytes | Special] = field(default_factory=dict)
    must_refuse: bool = False
    light: bool = False


@dataclass(frozen=True)
class Outcome:
    """How an input ended; `detail` is the refusal, or the traceback's end."""

    kind: str
    detail: str = ""


def run(case: Case, base: Path, limit: float = LIMIT_S) -> Outcome:
    """Run a case in a fresh working folder next to `base`, which is left as it is."""
    here = base.with_name(f"{base.name}-{os.getpid()}")
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir()
    for part in case.parts:
        (shutil.copytree if (base / part).is_dir() else shutil.copy)(base / part, here / part)
    for name, content in case.files.items():
        _place(here / name, content)
    before = os.getcwd()
    os.chdir(here)
    try:
        outcome = _guarded(case, limit)
        canary = (here / CANARY).exists()
    finally:
        os.chdir(before)
        shutil.rmtree(here, ignore_errors=True)
    return Outcome(WRONG, "code in the input was run") if canary else outcome


def _guarded(case: Case, limit: float) -> Outcome:
    screen = io.StringIO(), io.StringIO()
    try:
        with (
            _alarm(limit),
            _bounded_memory(),
            contextlib.redirect_stdout(screen[0]),
            contextlib.redirect_stderr(screen[1]),
            warnings.catch_warnings(),
            _hurried(case.light),
        ):
            warnings.simplefilter("ignore")
            status = main(list(case.words)) if case.call is None else case.call()
    except Enough:
        status = 0
    except Hang:
        return Outcome(HANG, f"more than {limit:g} s")
    except CarvError as error:
        return _sentence(str(error))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {str(error)[:200]!r} at {Path(where.filename).name}:{where.lineno}"
        return Outcome(TRACEBACK, text)
    if case.call is None and status == 2:
        lines = [line for line in screen[1].getvalue().splitlines() if line.startswith("carv: ")]
        if len(lines) != 1 or "Traceback" in screen[1].getvalue():
            return Outcome(TRACEBACK, f"not one sentence: {screen[1].getvalue()[-300:]!r}")
        return _sentence(lines[0].removeprefix("carv: "))
    if case.call is None and status != 0:
        return Outcome(TRACEBACK, f"status {status}")
    return Outcome(WRONG, case.note) if case.must_refuse else Outcome(FINE)


def _sentence(text: str) -> Outcome:
    if len(text) > LONGEST or "\n" in text:
        return Outcome(TRACEBACK, f"not one sentence, {len(text)} characters: {text[:200]!r}")
    return Outcome(REFUSED, text)


@contextlib.contextmanager
def _hurried(light: bool) -> Iterator[None]:
    """Runs end after a few steps, as if nothing were wrong with them, and comparisons draw nothing if `light`."""
    append, rows = Run.append, 0

    def counted(self: Run, row: dict[str, float]) -> None:
        nonlocal rows
        append(self, row)
        rows += 1
        if rows >= MOST_STEPS:
            raise Enough

    undrawn = mock.patch("carv_3d.compare.write.write_plots") if light else contextlib.nullcontext()
    with mock.patch.object(Run, "append", counted), undrawn:
        yield


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    """What asks for more than MORE_MEMORY gets a MemoryError, and not the machine's memory."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def over(number: int, frame: Any) -> None:
        raise Hang

    clocks = {signal.SIGALRM: (signal.ITIMER_REAL, WAITS * seconds), signal.SIGPROF: (signal.ITIMER_PROF, seconds)}
    before = {number: signal.signal(number, over) for number in clocks}
    for timer, limit in clocks.values():
        signal.setitimer(timer, limit, 1.0)  # again, where something catches all exceptions
    try:
        yield
    finally:
        for number, (timer, _) in clocks.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def _place(path: Path, content: bytes | Special) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "<folder>":
        path.mkdir()
    elif content == "<fifo>":
        os.mkfifo(path)
    elif content == "<socket>":
        socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))
    elif content == "<link loop>":
        path.symlink_to(path.name)
    elif content.startswith("</dev/"):
        path.symlink_to(content[1:-1])
    elif content == "<dangling link>":
        path.symlink_to("nowhere")
