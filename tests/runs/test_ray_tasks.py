"""Ray's clusters as they fail: nobody at the address, no free core, a head or a worker that is gone."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_ray import FakeRay, RayError, closed_port

from carv_3d.core.options import EngineOptions
from carv_3d.errors import CarvError
from carv_3d.io.files import locked
from carv_3d.runs.progress import Display
from carv_3d.runs.ray_tasks import TOKEN, Tasks, check_engine, run_on_ray

RAY = EngineOptions(engine="ray")


def work(folder: Path, task: str, display: Display) -> dict[str, float]:
    """A task that leaves a file."""
    (folder / task).write_text("done", encoding="utf-8")
    display.say(f"{task} is done")
    return {"loss": 0.5}


def run(ray: FakeRay, monkeypatch: pytest.MonkeyPatch, out: Path) -> list[str]:
    """What is said while one task is run there."""
    monkeypatch.setitem(sys.modules, "ray", ray)
    said: list[str] = []
    tasks = Tasks(work, ["first"], 0, "task", "what is finished is kept")
    assert run_on_ray(tasks, out, Display(write=said.append), RAY) == 0
    assert not (out / TOKEN).exists()
    return said


@pytest.fixture
def listening() -> Iterator[str]:
    """An address at which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_where_somebody_listens_or_the_address_is_a_word_ray_is_asked(
    listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    for address in (listening, f"ray://{listening}", "auto", None):
        check_engine(EngineOptions(engine="ray", address=address))


def test_an_address_that_nobody_listens_on_and_options_that_do_not_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    with pytest.raises(CarvError, match=r"no Ray cluster can be reached at 127\.0\.0\.1:\d+ \("):
        check_engine(EngineOptions(engine="ray", address=f"127.0.0.1:{closed_port()}"))
    with pytest.raises(CarvError, match="--address names a Ray cluster; add --engine ray"):
        check_engine(EngineOptions(address="auto"))
    for where in (EngineOptions(workers=2), EngineOptions(engine="ray", workers=2, address="auto")):
        with pytest.raises(CarvError, match="--workers is for --engine ray without an --address"):
            check_engine(where)


def test_a_task_is_done_on_the_worker_and_what_it_says_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = FakeRay()

    def wait(waiting: list[str], **how: Any) -> tuple[list[str], list[str]]:
        function, given = ray.given
        ray.result = function(*given)
        with pytest.raises(CarvError, match="a worker does not see"):
            function(*given[:-1], "another token")
        with pytest.raises(CarvError, match="another run is at work in"), locked(tmp_path):
            pass
        return waiting, []

    ray.wait = wait  # type: ignore[method-assign]
    assert run(ray, monkeypatch, tmp_path) == ["first is done", "task 1/1  left 0:00  loss 0.5000"]
    assert (tmp_path / "first").read_text(encoding="utf-8") == "done"


def test_a_cluster_that_is_full_or_has_no_core_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = ({}, [])
    assert run(FakeRay(4, 0, result=done), monkeypatch, tmp_path) == [
        "All 4 cores of the cluster are in use: waiting for one ...",
        "task 1/1  left 0:00  ",
    ]
    assert len(run(FakeRay(4, 1, result=done), monkeypatch, tmp_path)) == 1
    with pytest.raises(CarvError, match="the Ray cluster has no core to compute with"):
        run(FakeRay(0, 0, result=done), monkeypatch, tmp_path)


def test_a_head_that_is_gone_ends_it_and_one_that_is_slow_does_not(
    listening: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = f"127.0.0.1:{closed_port()}"
    with pytest.raises(CarvError, match=f"the head of the Ray cluster at {gone} is gone; what is finished"):
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
        (FakeRay.exceptions.WorkerCrashedError("x"), "a worker died 6 times over the same task"),
        (RayError("The node died.\nand much more"), r"Ray gave up a task \(The node died\)"),
    ],
)
def test_what_ray_gives_up_is_one_sentence(
    error: Exception, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CarvError, match=f"{sentence}.*; what is finished is kept"):
        run(FakeRay(result=error), monkeypatch, tmp_path)
