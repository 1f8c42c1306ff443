"""Pools of threads: their size from affinity and control group, what the user has set, and when."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from carv_3d.cli import environment, threads
from carv_3d.cli import main as cli
from carv_3d.cli.threads import POOLS, available_cores, settle_threads


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 3),  # two and a half
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, 8),
        ({"cpu.max": "nonsense\n"}, 8),
        ({"cpu.max": "100000 0\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)
def test_as_many_as_affinity_and_quota_allow(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_cores(tmp_path) == cores


def test_without_an_affinity_mask_all_cores_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert available_cores(tmp_path) == 5


def test_what_the_user_has_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(threads, "available_cores", lambda cgroup: 6)
    environment: dict[str, str] = {}
    settle_threads(environment, tmp_path)
    assert environment == {**dict.fromkeys(POOLS, "6"), "OMP_WAIT_POLICY": "PASSIVE"}
    environment = {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "2", "OMP_WAIT_POLICY": "ACTIVE"}
    settle_threads(environment, tmp_path)
    expected = {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "3", "NUMBA_NUM_THREADS": "3"}
    assert environment == {**expected, "OMP_WAIT_POLICY": "ACTIVE"}


@pytest.mark.parametrize(
    ("given", "omp", "numba"),
    [
        ({"OMP_NUM_THREADS": "abc"}, "6", "6"),
        ({"OMP_NUM_THREADS": ""}, "6", "6"),
        ({"OMP_NUM_THREADS": "-1"}, "6", "6"),
        ({"OMP_NUM_THREADS": "0"}, "6", "6"),
        ({"OMP_NUM_THREADS": "99999999999"}, "6", "6"),
        ({"OMP_NUM_THREADS": "4,2"}, "4,2", "4"),
        ({"OMP_NUM_THREADS": "3", "NUMBA_NUM_THREADS": "abc"}, "3", "3"),
        ({"NUMBA_NUM_THREADS": "4,2"}, "6", "6"),
    ],
)
def test_what_is_no_number_of_threads_is_set_aside(
    given: dict[str, str], omp: str, numba: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(threads, "available_cores", lambda cgroup: 6)
    settle_threads(given, tmp_path)
    assert given["OMP_NUM_THREADS"] == omp
    assert given["NUMBA_NUM_THREADS"] == numba


def test_once_torch_is_loaded_nothing_is_changed(tmp_path: Path) -> None:
    assert "torch" in sys.modules
    environment: dict[str, str] = {}
    settle_threads(environment, tmp_path)
    assert environment == {}


def test_every_command_settles_its_threads_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(environment, "settle_threads", lambda variables: order.append("threads"))
    monkeypatch.setattr(cli, "_dispatch", lambda words: order.append("command") or 0)
    assert cli.main(["doctor"]) == 0
    assert order == ["threads", "command"]


def test_torch_and_numba_take_the_size(tmp_path: Path) -> None:
    code = (
        "import carv_3d.cli.threads as t; t.available_cores = lambda cgroup: 1; t.settle_threads();"
        "import torch, numba, os; print(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS,"
        "os.environ['OMP_WAIT_POLICY'])"
    )
    own = {name: value for name, value in os.environ.items() if name not in (*POOLS, "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "PASSIVE"]
