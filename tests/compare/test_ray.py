"""Ray's clusters as they fail: nobody at the address, no free core, a head or a worker that is gone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import refusal

from carv_3d.compare import ray_engine
from carv_3d.compare.methods import Method
from carv_3d.compare.sweep import SPEC, Sweep, open_folder
from carv_3d.errors import CarvError
from carv_3d.io.files import locked
from carv_3d.io.tables import read_metrics
from carv_3d.runs.progress import Display

ROOT = Path(__file__).parents[2]
TWO = ["--prompt", "a red mug", "--method", "a", "--method", "b=num_draws=2", "--steps", "40", "--points", "20"]
SMALL = ["device=cpu", "data.width=16", "data.height=16", "geometry_type=voxel", "geometry.resolution=8",
         "exporter.resolution=12",
         "data.eval_width=16", "data.eval_height=16", "data.n_test_views=4", "texture_size=16"]  # fmt: skip


class RayError(Exception):
    """Of all of Ray's."""


class FakeRay(types.ModuleType):
    """A cluster of one core whose tasks give a value, raise, or never end."""

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
        return lambda function: types.SimpleNamespace(remote=lambda *given: "task")

    def wait(self, waiting: list[str], **how: Any) -> tuple[list[str], list[str]]:
        return ([], waiting) if self.result is None else (waiting, [])

    def get(self, reference: str) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def run(ray: FakeRay, monkeypatch: pytest.MonkeyPatch, out: Path) -> list[str]:
    """What is said while one group is run there."""
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(ray_engine, "sweep_clip", lambda *_: None)
    said: list[str] = []
    sweep = Sweep(prompts=["a red mug"], methods=[Method("a", []), Method("b", [])], steps=1)
    assert ray_engine.run_on_ray(sweep, out, Display(write=said.append)) == 0
    assert not (out / ".token").exists()
    return said


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def listening() -> Iterator[str]:
    """An address at which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "127.0.0.1:x", "127.0.0.1:99999"])
def test_an_address_that_nobody_listens_on_is_one_sentence_at_once(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    address = address.format(port=closed_port())
    said = refusal(capsys, "compare", *TWO, "--engine", "ray", "--address", address)  # and nothing is written
    assert said.startswith(f"carv: no Ray cluster can be reached at {address} (")
    assert said.endswith("); see ray status on its head")


def test_where_somebody_listens_or_the_address_is_a_word_ray_is_asked(
    listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    for address in (listening, f"ray://{listening}", "auto", None):
        ray_engine.check_ray(address)


def test_a_cluster_that_is_full_or_has_no_core_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = ({}, [])
    assert run(FakeRay(4, 0, result=done), monkeypatch, tmp_path) == [
        "All 4 cores of the cluster are in use: waiting for one ...",
        "prompts x seeds 1/1  left 0:00  ",
    ]
    assert len(run(FakeRay(4, 1, result=done), monkeypatch, tmp_path)) == 1
    with pytest.raises(CarvError, match="the Ray cluster has no core to compute with"):
        run(FakeRay(0, 0, result=done), monkeypatch, tmp_path)


def test_a_head_that_is_gone_ends_it_and_one_that_is_slow_does_not(
    listening: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = f"127.0.0.1:{closed_port()}"
    with pytest.raises(CarvError, match=f"the head of the Ray cluster at {gone} is gone; each run is saved"):
        run(FakeRay(head=gone), monkeypatch, tmp_path)
    slow = FakeRay(head=listening)
    answers = iter([None] * 10 + [({}, [])])
    wait = slow.wait

    def later(waiting: list[str], **how: Any) -> tuple[list[str], list[str]]:
        slow.result = next(answers)
        return wait(waiting)

    slow.wait = later  # type: ignore[method-assign]
    assert len(run(slow, monkeypatch, tmp_path)) == 1


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FakeRay.exceptions.WorkerCrashedError("x"), "a worker died 6 times over the same runs"),
        (RayError("The node died.\nand much more"), r"Ray gave up a task \(The node died\)"),
    ],
)
def test_what_ray_gives_up_is_one_sentence(
    error: Exception, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CarvError, match=f"{sentence}.*; each run is saved at its last point, and the same command"):
        run(FakeRay(result=error), monkeypatch, tmp_path)


def test_a_second_sweep_in_a_folder_is_refused_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = [Method("a", []), Method("b", [])]
    open_folder(Sweep(prompts=["a red mug"], methods=methods, steps=1), tmp_path)
    before = (tmp_path / SPEC).read_bytes()
    with locked(tmp_path):
        with pytest.raises(CarvError, match="another run is at work in"):
            open_folder(Sweep(prompts=["a blue car"], methods=methods, steps=1), tmp_path)
        with pytest.raises(CarvError, match="another run is at work in"):
            run(FakeRay(result=({}, [])), monkeypatch, tmp_path)
    assert (tmp_path / SPEC).read_bytes() == before


@pytest.mark.slow
def test_a_real_head_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    port, started = closed_port(), set[int]()
    place = tempfile.mkdtemp(prefix="ray-")  # a socket's path is short
    words = ["--port", str(port), "--num-cpus", "1", "--include-dashboard=false", "--temp-dir", place]
    # by default Ray's workers are nice by 15, and on a busy machine a run did not begin within the time
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"}
    command = [sys.executable, "-m", "carv_3d", "compare", *TWO, "--out", str(tmp_path / "out"), *SMALL]
    ray = ["--engine", "ray", "--address", f"127.0.0.1:{port}"]
    try:
        begin = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", *words]
        for _ in range(3):  # on a busy machine a head may not be up in the 30 s that Ray gives it
            if subprocess.run(begin, env=environment, check=False, stdout=subprocess.DEVNULL).returncode == 0:
                break
            for process in processes(place):
                os.kill(process, signal.SIGKILL)
        child = subprocess.Popen([*command, *ray], env=environment, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 300
        while not any(len(read_metrics(p)) >= 5 for p in tmp_path.glob("out/runs/*/*/metrics.csv")):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        started |= set(processes(place))
        for process in processes("gcs_server", place):
            os.kill(process, signal.SIGKILL)
        _, said = child.communicate(timeout=120)
        assert child.returncode == 2, said
        (line,) = [line for line in said.splitlines() if line.startswith("carv: ")]
        assert "is gone; each run is saved at its last point, and the same command resumes it" in line
        assert "Traceback" not in said
    finally:
        for process in started | set(processes(place)):
            if Path(f"/proc/{process}").exists():
                os.kill(process, signal.SIGKILL)
        shutil.rmtree(place, ignore_errors=True)
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    for path in tmp_path.glob("out/runs/*/*/metrics.csv"):
        assert [row["step"] for row in read_metrics(path)] == list(range(41))


def processes(*words: str) -> list[int]:
    """Those whose command line holds all the words, without this one."""
    matching = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if all(word in line for word in words) and int(path.name) != os.getpid():
            matching.append(int(path.name))
    return matching
