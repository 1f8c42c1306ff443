"""What a run shows on the terminal, and how it is asked to stop."""

from __future__ import annotations

import io
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from carv_3d.errors import printable

QUIET_SECONDS = 60.0  # at most, between two lines of a log
LAST_STEPS = 25  # that the time left is estimated from
FIRST_STEPS = 5  # after which it is believed
DAY = 86_400.0  # seconds; a run that takes longer is announced
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # the last is not on Windows


class StopSignals:
    """Within the block, Ctrl-C, SIGTERM and SIGHUP set `number` instead of ending the process; a second one ends it.

    With `at_once` the first one ends it. It ends by KeyboardInterrupt, whichever the signal is.

    A signal that is ignored (by nohup, say) stays so. Outside of the main thread, where signals cannot be caught, it
    does nothing.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.number, self._at_once = 0, at_once
        self._old: dict[int, Any] = {}

    @property
    def status(self) -> int:
        """The exit status, 128 + the signal's number; that of Ctrl-C where the signal came outside of the block."""
        return 128 + (self.number or signal.SIGINT)

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name, None) for name in SIGNALS):
                if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._old[number] = signal.signal(number, self._asked)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.number or self._at_once:
            self.number = self.number or number
            signal.signal(number, signal.SIG_IGN)  # another must not break into the unwinding
            if callable(self._old[number]):
                self._old[number](number, frame)
            raise KeyboardInterrupt
        self.number = number
        print("\nStopping after this step (once more to stop at once) ...", file=sys.stderr)


class Display:
    """A live line on a terminal, plain lines elsewhere (logs, pipes)."""

    def __init__(self, quiet: bool = False, write: Callable[[str], Any] | None = None) -> None:
        """quiet: show nothing at all. write: takes each line, in place of the terminal."""
        from rich.console import Console

        self._write = write
        file = None if write is None else io.StringIO()
        self.console = Console(highlight=False, soft_wrap=True, quiet=quiet, file=file)

    def say(self, text: str) -> None:
        """One line of text, taken literally; control characters, of a path or a prompt perhaps, are escaped."""
        text = printable(text)
        if self._write is not None:
            self._write(text)
        else:
            self.console.print(text, markup=False)

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Show that `text` is being done."""
        text = printable(text)
        if not self.console.is_terminal:
            self.say(f"{text} ...")
            yield
            return
        with self.console.status(text):
            yield

    @contextmanager
    def progress(
        self, done: int, total: int, unit: str = "step"
    ) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
        """Yield `show(step, figures)`; `unit` says what is counted.

        Figures: seconds, snr_step (or snr), iou, classifier_object, each shown if it is there.
        """
        if not self.console.is_terminal:
            yield self._plain_lines(done, total, unit)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn(unit),
            MofNCompleteColumn(),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        clock = _Eta(done, total)
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task("", total=total, completed=done, figures="")

            def show(step: int, figures: Mapping[str, float]) -> None:
                text = f"left {clock.left(step)}  {describe(figures)}"
                bar.update(task, completed=step, figures=text)
                self._say_if_long(clock)

            yield show

    def _say_if_long(self, clock: _Eta) -> None:
        """Once, where the run will take more than a day."""
        if clock.seconds > DAY and clock.calls == FIRST_STEPS:
            self.say(f"Note: at this pace {clock.words} are left; Ctrl-C stops the run, saved, and it can be resumed.")

    def _plain_lines(self, done: int, total: int, unit: str) -> Callable[[int, Mapping[str, float]], None]:
        every = max(1, total // 12)
        clock = _Eta(done, total)
        shown, at = done // every, time.perf_counter()

        def show(step: int, figures: Mapping[str, float]) -> None:
            nonlocal shown, at
            left, now = clock.left(step), time.perf_counter()
            self._say_if_long(clock)
            if step // every > shown or step == total or now - at >= QUIET_SECONDS:
                shown, at = step // every, now
                self.say(f"{unit} {step}/{total}  left {left}  {describe(figures)}")

        return show


def describe(figures: Mapping[str, float]) -> str:
    """The figures of a step in a few words: "0.31 s/step  SNR 0.42  classifier 0.87".

    >>> describe({"seconds": 0.3, "snr_step": 0.5})
    '0.30 s/step  SNR 0.500'
    """
    parts = []
    if "seconds" in figures:
        parts.append(f"{figures['seconds']:.2f} s/step")
    snr = figures.get("snr_step", figures.get("snr"))  # of the whole step, or else among a render's draws
    if snr is not None:
        parts.append(f"SNR {snr:.3f}")
    if "loss" in figures:
        parts.append(f"loss {figures['loss']:.4f}")
    if "iou" in figures:
        parts.append(f"IoU {figures['iou']:.2f}")
    if "classifier_object" in figures:
        parts.append(f"classifier {figures['classifier_object']:.2f}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as "2 min 05 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def seconds_a_step(step: Callable[[], Any], steps: int) -> float:
    """The mean over `steps` calls, after one that warms up."""
    step()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - begin) / steps


class _Eta:
    """The time that is left, by the mean over the last steps: a machine that was busy once does not count for ever."""

    def __init__(self, done: int, total: int) -> None:
        self.total, self.seconds, self.calls = total, 0.0, 0
        self.marks = deque([(done, time.perf_counter())], maxlen=LAST_STEPS + 1)

    def left(self, step: int) -> str:
        """After `step`, in words; to be asked at every step."""
        self.marks.append((step, time.perf_counter()))
        (first, begin), (last, now) = self.marks[0], self.marks[-1]
        each = (now - begin) / max(1, last - first)
        self.seconds, self.calls = each * (self.total - step), self.calls + 1
        return self.words

    @property
    def words(self) -> str:
        """Minutes and seconds, "0:45", or "12.3 days"."""
        seconds = round(self.seconds)
        return f"{seconds // 60}:{seconds % 60:02d}" if seconds < DAY else f"{seconds / DAY:,.1f} days"
