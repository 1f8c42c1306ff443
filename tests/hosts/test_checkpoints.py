"""threestudio's checkpoints under `weights_only`: what it writes is read, anything else is refused."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from carv_3d.errors import CarvError
from carv_3d.hosts.checkpoints import HostClass, allow_host_types, nested_config, without_containers


class System:
    """As threestudio's systems are: the configuration's class is nested."""

    @dataclass
    class Config:
        loggers: dict = field(default_factory=dict)
        optimizer: dict = field(default_factory=dict)
        weights: str | None = None
        ignored: Any = None
        names: list[str] = field(default_factory=list)


class Other:
    @dataclass
    class Config:
        a: int = 0


@pytest.fixture
def _allowed() -> Iterator[None]:
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    allow_host_types([System])
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def betas() -> ListConfig:
    """A list in a system's configuration, which holds on to all of it."""
    values = {"name": "Adam", "args": {"betas": [0.9, 0.99], "on": True, "n": 3, "word": "x", "none": None}}
    return OmegaConf.structured(System.Config(optimizer=values)).optimizer.args.betas


def saved(path: Path, value: Any) -> Path:
    torch.save({"state_dict": {"x": torch.ones(2)}, "optimizer_states": [{"param_groups": [value]}]}, path)
    return path


@pytest.mark.usefixtures("_allowed")
def test_a_checkpoint_with_a_list_of_the_configuration_is_read(tmp_path: Path) -> None:
    file = saved(tmp_path / "x.ckpt", {"betas": betas(), "lr": 0.1})
    group = torch.load(file, weights_only=True)["optimizer_states"][0]["param_groups"][0]
    assert list(group["betas"]) == [0.9, 0.99]
    assert group["betas"]._get_root()._metadata.object_type is HostClass  # threestudio's own class is not called


def test_without_the_list_of_types_torch_refuses_it(tmp_path: Path) -> None:
    with pytest.raises(pickle.UnpicklingError):
        torch.load(saved(tmp_path / "x.ckpt", {"betas": betas()}), weights_only=True)


class Runs:
    """What a stranger's file may hold."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


class Reaches:
    """A way from an allowed name to one that is not."""

    def __init__(self, owner: Any, name: str) -> None:
        self.ends = (owner, name)

    def __reduce__(self) -> Any:
        return getattr, self.ends


@pytest.mark.usefixtures("_allowed")
@pytest.mark.parametrize(
    "value", [Reaches(System, "__init__"), Reaches(DictConfig, "Config"), Reaches(ListConfig, "__init__"), Other.Config]
)
def test_nothing_else_is_read(value: Any, tmp_path: Path) -> None:
    with pytest.raises((pickle.UnpicklingError, CarvError)):
        torch.load(saved(tmp_path / "x.ckpt", value), weights_only=True)


@pytest.mark.usefixtures("_allowed")
def test_a_strangers_pickle_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(pickle.UnpicklingError):
        torch.load(saved(tmp_path / "x.ckpt", Runs(tmp_path / "mark")), weights_only=True)
    assert not (tmp_path / "mark").exists()


def test_only_the_nested_configuration_is_given() -> None:
    assert nested_config(HostClass, "Config") is HostClass
    for owner, name in ((HostClass, "__class__"), (System, "Config"), (os, "Config")):
        with pytest.raises(CarvError, match="take another file"):
            nested_config(owner, name)


def test_older_torch_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.0.1+cu117")
    monkeypatch.setattr(torch.serialization, "add_safe_globals", lambda named: pytest.fail("it has none"))
    allow_host_types([System])


def test_containers_become_plain(tmp_path: Path) -> None:
    plain = without_containers([{"param_groups": [{"betas": betas(), "lr": 0.1, "t": (1, 2)}], "state": {0: "x"}}])
    assert plain == [{"param_groups": [{"betas": [0.9, 0.99], "lr": 0.1, "t": (1, 2)}], "state": {0: "x"}}]
    assert type(plain[0]["param_groups"][0]["betas"]) is list
    assert torch.load(saved(tmp_path / "x.ckpt", plain), weights_only=True)["optimizer_states"][0]["param_groups"][0]
