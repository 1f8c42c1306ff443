"""Two processes on one machine by accelerate (gloo): one gradient, one set of strata, the same weights."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import carv_3d
from carv_3d.errors import CarvError
from carv_3d.runs import ranks
from carv_3d.runs.ranks import Ranks, join

HERE = Path(__file__).parent


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(Path(carv_3d.__file__).parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")])
    processes = []
    for rank in range(2):
        launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        environment |= {name: str(value) for name, value in launched.items()}
        words = [sys.executable, str(HERE / "rank_worker.py"), str(tmp_path)]
        processes.append(subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        for process in processes:
            _, error = process.communicate(timeout=300)
            assert process.returncode == 0, error
    finally:
        for process in processes:
            process.kill()
    reports = [torch.load(tmp_path / f"rank-{r}.pt", weights_only=True) for r in range(2)]
    assert [(report["rank"], report["world_size"]) for report in reports] == [(0, 2), (1, 2)]
    assert reports[0]["gathered"] == [{"rank": 0}, {"rank": 1}] == reports[1]["gathered"]
    for name in ("generator", "fake"):
        assert all(torch.equal(v, reports[1][name][k]) for k, v in reports[0][name].items())
    for report in reports:  # each resumed from the checkpoint as if it had not stopped
        assert all(torch.equal(v, report["again"][k]) for k, v in report["generator"].items())
    for (first, mean), (second, same) in zip(*(report["averaged"] for report in reports)):
        assert any(not torch.equal(a, b) for a, b in zip(first, second))  # samples and draws of their own
        for a, b, c, d in zip(first, second, mean, same):
            torch.testing.assert_close(c, (a + b) / 2)
            assert torch.equal(c, d)


def test_strata_are_shared_out_among_the_processes() -> None:
    from small import small

    places = [Ranks() for _ in range(2)]
    for rank, place in enumerate(places):
        place.rank, place.world_size = rank, 2
    both: list[Any] = [small(place, stratify="global", num_draws=4, batch_size=2) for place in places]
    draws = [place.matching.estimator.draw(torch.zeros(2, 1, 2, 2), place.generators["draws"]) for place in both]
    t = torch.cat([d.t for d in draws]).flatten().sort().values
    edges = 20 + 961 * torch.arange(17) / 16  # 2 processes, 2 samples, 4 draws: one in each of 16 strata
    assert bool((t >= edges[:-1].floor()).all())
    assert bool((t <= edges[1:].ceil()).all())
    assert not torch.equal(draws[0].eps, draws[1].eps)
    assert not torch.equal(both[0].generate(2)[0], both[1].generate(2)[0])


def test_a_process_takes_back_its_own_state() -> None:
    from small import small

    places = [Ranks() for _ in range(2)]
    for rank, place in enumerate(places):
        place.rank, place.world_size = rank, 2
    states = [small(place).state_dict() for place in places]
    both = {**states[0], "ranks": [state["ranks"][0] for state in states]}
    for rank, place in enumerate(places):
        again = small(place)
        for generator in again.generators.values():
            generator.manual_seed(0)
        again.load_state_dict(both)
        for name, state in states[rank]["ranks"][0]["generators"].items():
            assert torch.equal(again.generators[name].get_state(), state)


def test_one_process_needs_no_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)  # not to be had
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    group = join()
    gradient = torch.ones(2)
    group.average([gradient])
    assert (group.first, group.world_size, group.gather("x"), gradient.tolist()) == (True, 1, ["x"], [1.0, 1.0])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CarvError, match=r"several processes needs accelerate, .*: pip install .*\[distill\]"):
        join()


def test_what_is_waited_for_is_said_and_the_wait_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ranks, "QUIET", 0.05)
    monkeypatch.setattr(ranks, "JOINING", 0.4)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        for name, value in place.items():
            monkeypatch.setenv(name, value)
        address = f"127.0.0.1:{place['MASTER_PORT']}"
        with pytest.raises(CarvError, match=f"nobody has listened at {address} for 0.4 s .*; start all of them by acc"):
            join(cpu=True)
        assert f"carv: waiting for the first process at {address}, for 0.4 s at most\n" in capsys.readouterr().err
        free.listen()
        ranks.wait_for_listener(address, 0.4)
    ranks.wait_for_listener("host:port", 0.4)  # torch has words for it


def test_processes_that_cannot_join_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(cpu: bool) -> None:
        raise ValueError("environment variable MASTER_ADDR expected, but not set")

    monkeypatch.setattr("carv_3d.runs.ranks.require", lambda *names: SimpleNamespace(Accelerator=absent))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        CarvError, match=r"asks for 2 processes, .* \(environment variable MASTER_ADDR .*unset WORLD_SIZE"
    ):
        join(cpu=True)
    monkeypatch.delenv("WORLD_SIZE")
    assert join(cpu=True).world_size == 1
