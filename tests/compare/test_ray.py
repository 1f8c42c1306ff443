"""A comparison on Ray: an address at which there is nobody, a second sweep in its folder, a head that is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from commands import refusal
from fake_ray import FakeRay, closed_port

from carv_3d.compare.engine import group_tasks
from carv_3d.compare.methods import Method
from carv_3d.compare.sweep import SPEC, Sweep, open_folder
from carv_3d.core.options import EngineOptions
from carv_3d.errors import CarvError
from carv_3d.io.files import locked
from carv_3d.io.tables import read_metrics
from carv_3d.runs.progress import Display
from carv_3d.runs.ray_tasks import run_on_ray

ROOT = Path(__file__).parents[2]
TWO = ["--prompt", "a red mug", "--method", "a", "--method", "b=num_draws=2", "--steps", "40", "--points", "20"]
SMALL = ["device=cpu", "data.width=16", "data.height=16", "geometry_type=voxel", "geometry.resolution=8",
         "exporter.resolution=12",
         "data.eval_width=16", "data.eval_height=16", "data.n_test_views=4", "texture_size=16"]  # fmt: skip


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


def test_a_second_sweep_in_a_folder_is_refused_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = [Method("a", []), Method("b", [])]
    sweep = open_folder(Sweep(prompts=["a red mug"], methods=methods, steps=1), tmp_path)
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    before = (tmp_path / SPEC).read_bytes()
    with locked(tmp_path):
        with pytest.raises(CarvError, match="another run is at work in"):
            open_folder(Sweep(prompts=["a blue car"], methods=methods, steps=1), tmp_path)
        with pytest.raises(CarvError, match="another run is at work in"):
            run_on_ray(group_tasks(sweep, tmp_path), tmp_path, Display(quiet=True), EngineOptions(engine="ray"))
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
