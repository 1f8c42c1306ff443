"""Checkpoints of others: their weights alone, and nothing that they name is run."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from carv_3d.errors import CarvError
from carv_3d.io.tensor_files import load_checkpoint

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([True])}


class Callback:
    """As one of Lightning's, whose class is the key of its state."""

    def __init__(self, best: float = 0.5) -> None:
        self.best = best


def make_folder(path: str) -> None:
    os.mkdir(path)


class Runs:
    """A pickle that calls a function."""

    def __init__(self, function: Any, path: Path) -> None:
        self.function, self.path = function, path

    def __reduce__(self) -> Any:
        return self.function, (str(self.path),)


def check(tensors: dict[str, torch.Tensor]) -> None:
    assert set(tensors) == set(WEIGHTS)
    assert all(torch.equal(tensors[name], value) for name, value in WEIGHTS.items())


def test_lightnings_other_content_is_left_out(tmp_path: Path) -> None:
    whole = {
        "state_dict": WEIGHTS, "epoch": 3, "pytorch-lightning_version": "1.4.2",
        "callbacks": {Callback: {"best": torch.tensor(1.0)}}, "hyper_parameters": [Callback(2.0)],
    }  # fmt: skip
    torch.save(whole, tmp_path / "a.ckpt")
    check(load_checkpoint(tmp_path / "a.ckpt", "fix it"))


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_by_name_are_enough(legacy: bool, tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    check(load_checkpoint(tmp_path / "a.pt", "fix it"))
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    check(load_checkpoint(tmp_path / "a.safetensors", "fix it"))


def test_no_function_that_it_names_is_called(tmp_path: Path) -> None:
    file, path = tmp_path / "a.ckpt", tmp_path / "made"
    torch.save({"state_dict": WEIGHTS, "x": Runs(make_folder, path)}, file)
    check(load_checkpoint(file, "fix it"))
    torch.save({"state_dict": WEIGHTS, "x": Runs(os.mkdir, path)}, file)  # of a module that torch always refuses
    with pytest.raises(CarvError, match="cannot be read as weights alone"):
        load_checkpoint(file, "fix it")
    assert not path.exists()
    torch.load(file, weights_only=False)
    assert path.exists()  # as it would be


def test_what_is_no_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    (tmp_path / "pickle.ckpt").write_bytes(pickle.dumps({"a": 1}))
    torch.save({"state_dict": {"a": 1}}, tmp_path / "numbers.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    for name, said in (("text", "cannot be read as weights alone"), ("pickle", "cannot be read as weights alone"),
                       ("numbers", "does not hold tensors by name"), ("list", "does not hold tensors by name"),
                       ("absent", "is missing")):  # fmt: skip
        with pytest.raises(CarvError, match=re.escape(said) + ".*; fix it"):
            load_checkpoint(tmp_path / f"{name}.ckpt", "fix it")
