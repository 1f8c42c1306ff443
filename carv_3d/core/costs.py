"""Where the seconds go: a clock with named phases, and counters of network evaluations and renders."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from carv_3d.core.arguments import checked, described
from carv_3d.core.brief import Brief
from carv_3d.errors import CarvError

T = TypeVar("T")


class CostMeter(Brief):
    """Seconds by phase and counts by name, of one process.

        meter = CostMeter(device)
        with meter.phase("render"):
            ...
        meter.count(renders=2, nfe=16)

    A phase within a phase is taken out of the outer one, so that the seconds add up. On CUDA a phase waits for the
    device at both ends, so that its seconds are its own; with `synchronize=False` only the launching is measured.
    """

    brief = ("seconds", "counts")

    @checked
    def __init__(self, device: torch.device | str = "cpu", synchronize: bool = True) -> None:
        self._device = torch.device(device)
        wait = synchronize and self._device.type == "cuda"
        self._clock: Callable[[], float] = self._synchronized if wait else time.perf_counter
        self._inner: list[float] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything measured."""
        self.seconds: dict[str, float] = {}
        self.counts: dict[str, int] = {"nfe": 0, "renders": 0}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the seconds within to `seconds[name]`, also where the block raises."""
        start = self.now()
        self._inner.append(0.0)
        try:
            yield
        finally:
            took = self.now() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + took - self._inner.pop()
            if self._inner:
                self._inner[-1] += took

    def timed(self, name: str, function: Callable[..., T], count: str | None = None) -> Callable[..., T]:
        """`function` as a phase.

        Args:
            name: of the phase.
            function: what is called; what it raises passes.
            count: gets the length of the first argument once the call succeeded.

        Returns:
            A function of the same arguments and result.
        """

        def call(*args: Any, **kwargs: Any) -> T:
            begin = self._clock()
            self._inner.append(0.0)
            try:
                out = function(*args, **kwargs)
            finally:
                took = self._clock() - begin
                self.seconds[name] = self.seconds.get(name, 0.0) + took - self._inner.pop()
                if self._inner:
                    self._inner[-1] += took
            if count is not None:
                self.counts[count] = self.counts.get(count, 0) + len(args[0])
            return out

        return call

    def count(self, **amounts: int) -> None:
        """Add to the counters: `meter.count(nfe=8, renders=1)`; other names may be counted as well."""
        for name, amount in amounts.items():
            self.counts[name] = self.counts.get(name, 0) + int(amount)

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """What happens within (previews, say) leaves seconds and counters as they were."""
        seconds, counts = dict(self.seconds), dict(self.counts)
        try:
            yield
        finally:
            self.seconds, self.counts = seconds, counts

    @property
    def nfe(self) -> int:
        """Network function evaluations: samples through the UNet, 2 per draw under classifier-free guidance."""
        return self.counts["nfe"]

    @property
    def renders(self) -> int:
        """Upstream evaluations so far."""
        return self.counts["renders"]

    @property
    def total_seconds(self) -> float:
        """Of all phases."""
        return sum(self.seconds.values())

    def as_scalars(self) -> dict[str, float]:
        """For a log: seconds_<phase>, and the counts under their names."""
        counts = {name: float(value) for name, value in self.counts.items()}
        return {**{f"seconds_{name}": value for name, value in self.seconds.items()}, **counts}

    def state_dict(self) -> dict[str, Any]:
        """Primitives only; a resumed run counts from there."""
        return {"seconds": dict(self.seconds), "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back `state_dict`. Raises CarvError for anything else."""
        if not isinstance(state, dict) or not all(isinstance(state.get(key), dict) for key in ("seconds", "counts")):
            raise CarvError(
                f"this is no state of a CostMeter ({described(state)}); give what its state_dict() returned."
            )
        self.seconds, self.counts = dict(state["seconds"]), dict(state["counts"])

    def now(self) -> float:
        """The clock's reading in seconds; on CUDA once the device has caught up."""
        return self._clock()

    def _synchronized(self) -> float:
        torch.cuda.synchronize(self._device)
        return time.perf_counter()
