"""Independent tasks on Ray: a worker that dies has its task given to another one.

A task writes what it has made to the folder of the work, under a lock of its own, and leaves alone what is there: so
nothing is made twice, and nothing is lost but what the dead worker had not saved. On several machines the folder must
lie where all of them see it.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carv_3d.core.options import EngineOptions
from carv_3d.errors import CarvError, first_line, require
from carv_3d.io.files import locked, write_atomic
from carv_3d.runs.progress import Display, StopSignals

PATIENCE = 3  # questions, a second apart, that the head may leave unanswered
RETRIES = 5  # of a task whose worker died
TOKEN = ".token"  # in the folder while it runs: a worker that does not see it writes elsewhere
Work = Callable[[Path, Any, Display], dict[str, float]]


@dataclass(frozen=True)
class Tasks:
    """What is done on Ray.

    Args:
        work: called as work(folder, task, display) on a worker; returns figures for the display. It is pickled, so it
            stands in a module or is a `functools.partial` of such a function.
        left: the tasks that are not done.
        done: how many are.
        unit: what one of them is, for the progress bar.
        resumed: what a message about a failure says of the work that is done.
    """

    work: Work
    left: Sequence[Any]
    done: int
    unit: str
    resumed: str


def check_engine(where: EngineOptions) -> None:
    """CarvError where the options do not fit together, Ray is not installed, or nobody listens at the address.

    Ray itself would ask for minutes.
    """
    if where.address is not None and where.engine != "ray":
        raise CarvError("--address names a Ray cluster; add --engine ray")
    if where.workers is not None and (where.engine != "ray" or where.address is not None):
        raise CarvError("--workers is for --engine ray without an --address; leave it out")
    if where.engine != "ray":
        return
    require("ray", "compare", "--engine ray")
    address = where.address
    problem = _unreachable(address or "")
    if problem:
        raise CarvError(f"no Ray cluster can be reached at {address} ({problem}); see ray status on its head")


def _unreachable(address: str) -> str:
    """Why nobody can be reached at HOST:PORT; empty where somebody can, or the address is a word such as auto."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return ""
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError) as error:
        return first_line(error)
    return ""


def run_on_ray(tasks: Tasks, out: Path, display: Display, where: EngineOptions) -> int:
    """All tasks that are left, several at once; returns 0, or the number of the signal that stopped it.

    Args:
        tasks: what is done.
        out: the folder of the work, which is locked meanwhile.
        display: for the progress, and what workers say.
        where: the address of a cluster; without one it is begun here with `workers` cores (default: all of them).

    Raises:
        CarvError: what a worker raises as such, and where Ray gives up; ends in what is kept.
    """
    import ray

    out = out.resolve()
    token = secrets.token_hex(8)
    with locked(out), _connected(ray, where), _written(out / TOKEN, token):
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
        _check_cores(ray, display)
        head, unanswered = str(getattr(ray.get_runtime_context(), "gcs_address", "")), 0
        resources = {"num_cpus": 1, "num_gpus": gpus, "max_retries": RETRIES}
        remote = ray.remote(**resources)(_task)

        waiting = [remote.remote(tasks.work, str(out), task, token) for task in tasks.left]
        total = tasks.done + len(waiting)
        with StopSignals() as stop, display.progress(tasks.done, total, tasks.unit) as show:
            while waiting and not stop.number:
                ready, _ = ray.wait(waiting, num_returns=1, timeout=1.0)
                unanswered = unanswered + 1 if not ready and _unreachable(head) else 0
                if unanswered >= PATIENCE:
                    raise CarvError(f"the head of the Ray cluster at {head} is gone; {tasks.resumed}")
                for reference in ready:
                    figures, said = _value(ray, reference, tasks.resumed)
                    waiting.remove(reference)
                    for line in said:
                        display.say(line)
                    show(total - len(waiting), figures)
            if stop.number:
                for reference in waiting:
                    ray.cancel(reference, force=True)  # what is done is in the folder
    return stop.number


def _check_cores(ray: Any, display: Display) -> None:
    """Say where all cores are in use; CarvError where there are none, for which Ray would wait without a word."""
    cores = ray.cluster_resources().get("CPU", 0)
    if cores < 1:
        raise CarvError("the Ray cluster has no core to compute with; start a node with --num-cpus of 1 or more")
    if ray.available_resources().get("CPU", 0) < 1:
        display.say(f"All {cores:g} cores of the cluster are in use: waiting for one ...")


@contextmanager
def _connected(ray: Any, where: EngineOptions) -> Iterator[None]:
    """Ray within the block; one that was there before is left as it was."""
    if ray.is_initialized():
        yield
        return
    address = where.address
    here: dict[str, Any] = {"include_dashboard": False, "num_cpus": where.workers}
    try:
        ray.init(log_to_driver=False, configure_logging=False, **({"address": address} if address else here))
    except Exception as error:  # a node that does not come up in time is a bare Exception of Ray's
        ray.shutdown()
        place = f"at {address}" if address else "here"
        raise CarvError(f"Ray {place} cannot be reached or begun ({first_line(error)}); see ray status") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _written(path: Path, text: str) -> Iterator[None]:
    write_atomic(path, text)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _value(ray: Any, reference: Any, resumed: str) -> Any:
    """A task's result; what it raised as CarvError where a user can mend it."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CarvError):
            raise CarvError(str(error.cause)) from error
        raise
    except ray.exceptions.WorkerCrashedError as error:
        raise CarvError(
            f"a worker died {RETRIES + 1} times over the same task (memory, mostly); give fewer --workers; {resumed}"
        ) from error
    except ray.exceptions.RayError as error:  # a node that is gone, or out of memory
        raise CarvError(f"Ray gave up a task ({first_line(error)}); {resumed}") from error


def _prepare(out: str, token: str) -> Path:
    """What a worker sees to first: that it sees this folder, and keeps to its one core."""
    import torch

    folder = Path(out)
    path = folder / TOKEN
    if not path.exists() or path.read_text(encoding="utf-8") != token:
        raise CarvError(f"a worker does not see {folder}; put --out on a file system that all machines share")
    torch.set_num_threads(1)
    return folder


def _task(work: Work, out: str, task: Any, token: str) -> tuple[dict[str, float], list[str]]:
    """One task on a worker; returns its figures and what there was to say."""
    folder = _prepare(out, token)
    lines: list[str] = []
    return work(folder, task, Display(write=lines.append)), lines
