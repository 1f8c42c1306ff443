"""The same runs on Ray: every (prompt, seed) is a task, in which its methods take turns on one worker.

A worker that dies loses nothing but the steps since its runs' last points: Ray gives its task to another one, which
takes each run up there; runs that are done are left alone, and a lock on each run's folder keeps two workers apart.
On several machines --out must lie where all of them see it.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from carv_3d.compare.engine import run_group, sweep_clip, warm_teachers
from carv_3d.compare.sweep import Sweep
from carv_3d.errors import CarvError, first_line, require
from carv_3d.io.files import locked, write_atomic
from carv_3d.runs.progress import Display, StopSignals

PATIENCE = 3  # questions, a second apart, that the head may leave unanswered
RETRIES = 5  # of a task whose worker died
RESUMED = "each run is saved at its last point, and the same command resumes it"
TOKEN = ".token"  # in OUT while it runs: a worker that does not see it writes elsewhere


def check_ray(address: str | None = None) -> None:
    """CarvError where Ray is not installed, or nobody listens at the address; Ray itself would ask for minutes."""
    require("ray", "compare", "--engine ray")
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


def run_on_ray(
    sweep: Sweep, out: Path, display: Display, address: str | None = None, workers: int | None = None
) -> int:
    """All groups that are left, several at once; returns 0, or the number of the signal that stopped it.

    address: of a cluster that is there; without one it is begun here with `workers` cores (default: all of them).
    """
    import ray

    out = out.resolve()
    token = secrets.token_hex(8)
    with locked(out), _connected(ray, address, workers), _written(out / TOKEN, token):
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
        _check_cores(ray, display)
        head, unanswered = str(getattr(ray.get_runtime_context(), "gcs_address", "")), 0
        resources = {"num_cpus": 1, "num_gpus": gpus, "max_retries": RETRIES}
        task = ray.remote(**resources)(_group)

        sweep_clip(sweep, display)  # says where there is none, once
        left = sweep.left(out)
        waiting = {task.remote(sweep, str(out), group, token): group for group in left}
        total = len(sweep.groups)
        with StopSignals() as stop, display.progress(total - len(left), total, "prompts x seeds") as show:
            while waiting and not stop.number:
                ready, _ = ray.wait(list(waiting), num_returns=1, timeout=1.0)
                unanswered = unanswered + 1 if not ready and _unreachable(head) else 0
                if unanswered >= PATIENCE:
                    raise CarvError(f"the head of the Ray cluster at {head} is gone; {RESUMED}")
                for reference in ready:
                    figures, said = _value(ray, reference)
                    del waiting[reference]
                    for line in said:
                        display.say(line)
                    show(total - len(waiting), figures)
            if stop.number:
                for reference in waiting:
                    ray.cancel(reference, force=True)  # each run is resumed at its last point
    return stop.number


def _check_cores(ray: Any, display: Display) -> None:
    """Say where all cores are in use; CarvError where there are none, for which Ray would wait without a word."""
    cores = ray.cluster_resources().get("CPU", 0)
    if cores < 1:
        raise CarvError("the Ray cluster has no core to compute with; start a node with --num-cpus of 1 or more")
    if ray.available_resources().get("CPU", 0) < 1:
        display.say(f"All {cores:g} cores of the cluster are in use: waiting for one ...")


@contextmanager
def _connected(ray: Any, address: str | None, workers: int | None) -> Iterator[None]:
    """Ray within the block; one that was there before is left as it was."""
    if ray.is_initialized():
        yield
        return
    here: dict[str, Any] = {"include_dashboard": False, "num_cpus": workers}
    try:
        ray.init(log_to_driver=False, configure_logging=False, **({"address": address} if address else here))
    except Exception as error:  # a node that does not come up in time is a bare Exception of Ray's
        ray.shutdown()
        where = f"at {address}" if address else "here"
        raise CarvError(f"Ray {where} cannot be reached or begun ({first_line(error)}); see ray status") from error
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


def _value(ray: Any, reference: Any) -> Any:
    """A task's result; what it raised as CarvError where a user can mend it."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CarvError):
            raise CarvError(str(error.cause)) from error
        raise
    except ray.exceptions.WorkerCrashedError as error:
        raise CarvError(
            f"a worker died {RETRIES + 1} times over the same runs (memory, mostly); give fewer --workers; {RESUMED}"
        ) from error
    except ray.exceptions.RayError as error:  # a node that is gone, or out of memory
        raise CarvError(f"Ray gave up a task ({first_line(error)}); {RESUMED}") from error


def _prepare(out: str, token: str) -> Path:
    """What a worker sees to first: that it sees this folder, and keeps to its one core."""
    import torch

    folder = Path(out)
    path = folder / TOKEN
    if not path.exists() or path.read_text(encoding="utf-8") != token:
        raise CarvError(f"a worker does not see {folder}; put --out on a file system that all machines share")
    torch.set_num_threads(1)
    return folder


def _group(sweep: Sweep, out: str, group: tuple[int, int], token: str) -> tuple[dict[str, float], list[str]]:
    """One task: the runs of a group; returns their last figures and what there was to say."""
    folder = _prepare(out, token)
    lines: list[str] = []
    display = Display(write=lines.append)
    last: dict[str, float] = {}

    def show(done: float, figures: dict[str, float]) -> None:
        last.update(figures)

    run_group(sweep, folder, group, warm_teachers(sweep), sweep_clip(sweep, Display(quiet=True)), display, show)
    return last, lines
