"""What is too much for memory is refused before it is taken; what is free is asked of the whole machine."""

from __future__ import annotations

import gc
import resource
from pathlib import Path

import pytest
import torch
from estimators import make, model, some_latents

from carv_3d.attribution.command import attribute
from carv_3d.attribution.request import AttributeOptions
from carv_3d.core import checks, memory
from carv_3d.distill.loop import Distillation
from carv_3d.distill.options import DistillOptions
from carv_3d.errors import CarvError
from carv_3d.teachers.gaussian import GaussianTeacher


def tree(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_least_of_machine_and_control_group_is_free(tmp_path: Path) -> None:
    proc = tree(tmp_path / "proc", meminfo="MemTotal: 99 kB\nMemAvailable:  4194304 kB\n")
    assert memory.free_memory(proc=proc, cgroup=tmp_path) == 2**32
    newer = tree(
        tmp_path / "2", memory_DOT_max="3000\n", memory_DOT_current="2500", memory_DOT_stat="inactive_file 100"
    )
    assert memory.free_memory(proc=proc, cgroup=newer) == 600  # the kernel takes its files back
    older = tree(tmp_path / "1", memory__memory_DOT_limit_in_bytes="900", memory__memory_DOT_usage_in_bytes="1000")
    assert memory.free_memory(proc=proc, cgroup=older) == 0
    unlimited = tree(tmp_path / "3", memory_DOT_max="max\n", memory_DOT_current="5")
    assert memory.free_memory(proc=proc, cgroup=unlimited) == 2**32
    assert memory.free_memory(proc=tmp_path, cgroup=tmp_path) is None


def test_a_limit_of_the_address_space_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**30, 2**30))
    proc = tree(tmp_path, meminfo="MemAvailable: 4194304 kB", self__status="Name: x\nVmSize:   524288 kB\n")
    assert memory.free_memory(proc=proc, cgroup=tmp_path) == 2**29


def test_the_largest_part_is_named_with_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: 2**30)
    memory.check_memory({"a = 1": 2**29, "b = 2": 2**29}, "lower it")
    with pytest.raises(CarvError) as caught:
        memory.check_memory({"a = 1": 2**29, "b = 2": 2**30}, "lower it")
    assert str(caught.value) == (
        "b = 2 takes at least 1.0 GiB (1,073,741,824 bytes) and 1.0 GiB (1,073,741,824 bytes) are free; "
        "all that is needed at once is 1.5 GiB (1,610,612,736 bytes): lower it."
    )
    monkeypatch.setattr(memory, "free_memory", lambda _: 0)
    memory.check_memory({"a = 1": 2**20}, "lower it")  # nobody asks for so little
    monkeypatch.setattr(memory, "free_memory", lambda _: None)
    memory.check_memory({"a = 1": 2**60}, "lower it")  # nor where the system does not say


def test_draws_that_the_system_would_grant_and_not_have_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_may_be_made(*_: object, **__: object) -> torch.Tensor:
        raise AssertionError("noise was made")

    latents = some_latents()
    monkeypatch.setattr(checks, "free_memory", lambda _: 2**31)
    monkeypatch.setattr(torch, "randn", none_may_be_made)
    with pytest.raises(CarvError, match=r"num_draws is 2000000, .* takes 824.0 MiB \(864,000,000 bytes\), 3 times"):
        make().estimate(latents, model, num_draws=2_000_000)


def test_an_attribution_is_refused_before_its_model_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: 2**32)
    model, images = str(tmp_path / "no-model"), str(tmp_path)
    asked = AttributeOptions(query="a mug", model=model, training_images=images, dim=16384, out=tmp_path / "out")
    with pytest.raises(CarvError, match=r"the kernel of dim = 16384 takes at least 6.0 GiB .*: lower dim or views"):
        attribute(asked)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_distillation_is_refused_before_its_networks_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: 2**30)
    teacher, prompts = GaussianTeacher(torch.zeros(1, 4, 64, 64)), object()
    with pytest.raises(CarvError, match=r"batch_size x draws = 64 x 512 takes at least 6.0 GiB .*: lower batch_size"):
        Distillation(teacher, DistillOptions(batch_size=64, num_draws=512), prompts)  # type: ignore[arg-type]


def test_the_collector_pauses_and_runs_again_as_it_did() -> None:
    with memory.collection_paused():
        assert not gc.isenabled()
        with memory.collection_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
