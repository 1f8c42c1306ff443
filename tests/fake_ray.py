"""A stand-in for Ray: a cluster of one core whose tasks give a value, raise, or never end."""

from __future__ import annotations

import functools
import socket
import types
from typing import Any


class RayError(Exception):
    """Of all of Ray's."""


class FakeRay(types.ModuleType):
    """`import ray`."""

    class exceptions:
        RayError = RayError
        RayTaskError = type("RayTaskError", (RayError,), {})
        WorkerCrashedError = type("WorkerCrashedError", (RayError,), {})

    def __init__(self, cores: float = 1, free: float = 1, head: str = "", result: Any = None) -> None:
        super().__init__("ray")
        self.cores, self.free, self.head, self.result = cores, free, head, result
        self.is_initialized = lambda: True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self.cores}

    def available_resources(self) -> dict[str, float]:
        return {"CPU": self.free} if self.free else {}

    def get_runtime_context(self) -> Any:
        return types.SimpleNamespace(gcs_address=self.head)

    def remote(self, **resources: Any) -> Any:
        return lambda function: types.SimpleNamespace(remote=functools.partial(self.begin, function))

    def begin(self, function: Any, *given: Any) -> str:
        self.given = function, given
        return "task"

    def wait(self, waiting: list[str], **how: Any) -> tuple[list[str], list[str]]:
        return ([], waiting) if self.result is None else (waiting, [])

    def get(self, reference: str) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
