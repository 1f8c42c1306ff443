"""What a step takes for R renders of K draws, from the seconds of the steps that were run."""

from __future__ import annotations

import statistics
from collections import deque
from typing import Any

from carv_3d.core.costs import CostMeter

RECENT = 15  # steps over which seconds are a median

Timings = dict[int, deque[float]]


class StepTimes:
    """Seconds from one step's begin to the next, by the number of renders, and of denoising, by the number of draws.

    Whatever a host does in a step counts. What it does besides (previews, another run's turn) it takes out with `skip`;
    where that is rare the median leaves it out.
    """

    def __init__(self, meter: CostMeter) -> None:
        """meter: its clock, and its phase "denoise"."""
        self.meter = meter
        self._others: Timings = {}  # renders of a step -> its seconds without denoising
        self._denoise: Timings = {}  # draws of a step -> seconds of denoising them
        self._extra: deque[float] = deque(maxlen=RECENT)  # seconds of a measured step beyond a usual one's
        self._begin: float | None = None
        self._denoised = self._seen = 0.0  # of the last step; of all before it

    def __bool__(self) -> bool:
        """Whether any step was timed."""
        return bool(self._others)

    def begin(self) -> None:
        """A step begins."""
        self._begin, self._seen = self.meter.now(), self.meter.seconds.get("denoise", 0.0)

    def end(self, renders: int, draws: int, measured: bool) -> float | None:
        """The step that began last has ended; returns the seconds of a usual one, None where none had begun.

        Args:
            renders: of that step.
            draws: K of a usual step.
            measured: whether the step was measured, and so no usual one.
        """
        if self._begin is None:
            return None
        took, self._begin = self.meter.now() - self._begin, None
        if not measured:
            self._note(self._others, renders, max(took - self._denoised, 1e-9))
            return took
        usual = self.seconds(renders, draws) if self else took
        self._extra.append(max(took - usual, 0.0))
        return usual

    def denoised(self, draws: int) -> None:
        """That many draws have been denoised, in the seconds that the meter has gained since `begin`."""
        total = self.meter.seconds.get("denoise", 0.0)
        self._denoised = total - self._seen
        self._note(self._denoise, draws, self._denoised)

    def skip(self, seconds: float) -> None:
        """Seconds since `begin` that are no part of the step."""
        if self._begin is not None:
            self._begin += seconds

    def seconds(self, R: int, K: int) -> float:
        """Of a step with K draws for each of R renders: as measured, or on the line between what was."""
        return on_line(self._others, R) + on_line(self._denoise, K * R)

    @property
    def extra(self) -> float:
        """Seconds of a measured step beyond a usual one's; the median."""
        return statistics.median(self._extra)

    @staticmethod
    def _note(timings: Timings, n: int, seconds: float) -> None:
        timings.setdefault(n, deque(maxlen=RECENT)).append(seconds)

    def state_dict(self) -> dict[str, Any]:
        """Numbers. A step that a stop cut off is not timed."""
        return {
            "others": {n: list(s) for n, s in self._others.items()},
            "denoise": {n: list(s) for n, s in self._denoise.items()},
            "extra": list(self._extra),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back `state_dict`."""
        self._others, self._denoise = _timings(state["others"]), _timings(state["denoise"])
        self._extra = deque(state["extra"], maxlen=RECENT)
        self._begin = None


def on_line(timings: Timings, n: int) -> float:
    """Seconds at n, from the medians at what was measured.

    That itself, or on the line through the neighbors, not falling; below all of them, and where there is one alone,
    not less than in proportion.

    Args:
        timings: seconds as measured, by number.
        n: the number.
    """
    points = sorted((at, statistics.median(s)) for at, s in timings.items())
    if n in timings:
        return dict(points)[n]
    in_proportion = points[0][1] * n / points[0][0]
    if len(points) == 1:
        return in_proportion
    right = next((i for i, (at, _) in enumerate(points) if at >= n), len(points) - 1)
    (n0, s0), (n1, s1) = points[max(right - 1, 0)], points[max(right, 1)]
    slope = max(s1 - s0, 0.0) / (n1 - n0)
    line = s0 + slope * (n - n0)
    return max(line, in_proportion) if n < points[0][0] else line


def _timings(saved: dict[Any, list[float]]) -> Timings:
    return {int(n): deque(s, maxlen=RECENT) for n, s in saved.items() if s}
