"""What a command shows, and Ctrl-C: a reader that is gone, a full disk or impatience never costs the work.

A pipe whose reader has left (`carv generate ... | head -3`), a log on a full disk and a closed terminal raise an error
in the middle of a step, and rich turns some of them into an exit. `steady_streams` takes such errors off both streams.
`open_closed_streams` is for those that were never there.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EIO)  # the reader of a pipe, or the terminal: nobody misses what is not shown
IMPATIENCE = 5.0  # seconds in which a further Ctrl-C is the same one


def open_closed_streams() -> None:
    """Give the null device to each of the three streams that the process was started without (`carv runs <&-`).

    Their numbers would go to the next files that are opened, and what libraries and children write on a stream would
    end in those.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with suppress(OSError):
                os.fstat(number)
                continue
            os.open(os.devnull, os.O_RDWR)  # takes the least number that is free
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))


def answer(question: str) -> str:
    """What is typed in reply, without blanks around it; "" where the terminal's input ends, or is not text."""
    try:
        return input(question).strip()
    except (EOFError, UnicodeDecodeError):
        print()
        return ""


class SteadyStream:
    """A text stream that never raises OSError: from the first on, what is written to it is dropped."""

    def __init__(self, stream: TextIO, complain: bool) -> None:
        """complain: say in one line on stderr that the stream is lost, unless its reader left."""
        self._stream, self._complain = stream, complain
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write, or drop."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, or do nothing."""
        self._attempt(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _attempt(self, do: Callable[[], object]) -> None:
        if self.lost is not None:
            return
        try:
            do()
        except OSError as error:
            self.lost = error
            with suppress(OSError, ValueError):  # what is still buffered, and what libraries and children write
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
            if self._complain and error.errno not in GONE:
                print(f"carv: nothing more is shown here: {error.strerror}", file=sys.stderr)


@contextmanager
def steady_streams() -> Iterator[SteadyStream | None]:
    """Within, stdout and stderr are SteadyStreams, and letters that an encoding lacks are replaced.

    Yields stdout, flushed when the block is left; None where the process has none.
    """
    before = sys.stdout, sys.stderr
    steady = [None if s is None else SteadyStream(s, complain) for s, complain in zip(before, (True, False))]
    errors = ("strict", "surrogateescape")  # the second in the locale C
    if hasattr(before[0], "reconfigure") and before[0].errors in errors:
        before[0].reconfigure(errors="replace")
    sys.stdout, sys.stderr = steady  # type: ignore[assignment]
    try:
        yield steady[0]
    finally:
        for stream in filter(None, steady):
            stream.flush()
        sys.stdout, sys.stderr = before


class _Interrupt:
    """The handler of SIGINT: KeyboardInterrupt, once in a while."""

    def __init__(self) -> None:
        self.last = -IMPATIENCE

    def __call__(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if now - self.last >= IMPATIENCE:
            self.last = now
            raise KeyboardInterrupt


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt in the block, and further ones do not break into the unwinding, nor after it."""
    default = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not default:
        yield
        return
    interrupt = _Interrupt()
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if interrupt.last < 0:  # else Python's own end must not be broken into either
            signal.signal(signal.SIGINT, default)
