"""A checkpoint survives truncation, a full disk and a kill between any two of its steps."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from carv_3d.errors import CarvError
from carv_3d.runs.checkpoint import (
    check_made_with,
    has_checkpoint,
    load_checkpoint,
    module_fingerprint,
    resumed_state,
    save_checkpoint,
)
from carv_3d.runs.names import previous_path


def state(step: int) -> dict[str, Any]:
    return {"step": step, "field": {"grid": torch.full((3, 4), float(step))}, "list": [1, "a", None, 0.5]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two checkpoints, of steps 1 and 2."""
    path = tmp_path / "checkpoint"
    save_checkpoint(path, state(1))
    save_checkpoint(path, state(2))
    return path


def test_what_is_saved_is_loaded(path: Path) -> None:
    loaded, note = load_checkpoint(path)
    assert note is None
    assert loaded["step"] == 2
    assert torch.equal(loaded["field"]["grid"], torch.full((3, 4), 2.0))
    assert loaded["list"] == [1, "a", None, 0.5]
    assert sorted(os.listdir(path.parent)) == ["checkpoint", "checkpoint.previous"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_one_falls_back_to_the_one_before(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    loaded, note = load_checkpoint(path)
    assert loaded["step"] == 1
    assert note is not None
    assert "damaged" in note


def test_when_both_are_damaged_it_is_one_sentence(path: Path) -> None:
    path.write_bytes(b"")
    previous_path(path).write_bytes(b"not a checkpoint")
    with pytest.raises(CarvError, match=r"no checkpoint in .* can be read") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch would have it loaded without


def test_a_kill_between_the_two_renames_loses_nothing(path: Path) -> None:
    os.replace(path, previous_path(path))
    loaded, _ = load_checkpoint(path)
    assert loaded["step"] == 2


def test_none_at_all_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CarvError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "checkpoint")


def test_a_full_disk_keeps_both(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CarvError, match="the disk is full"):
            save_checkpoint(path, state(3))
    assert load_checkpoint(path)[0]["step"] == 2
    assert load_checkpoint(previous_path(path))[0]["step"] == 1
    assert sorted(os.listdir(path.parent)) == ["checkpoint", "checkpoint.previous"]


def test_a_checkpoint_cannot_run_code(path: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "it ran"),)

    torch.save({"format": 1, "state": Evil()}, path)
    previous_path(path).write_bytes(pickle.dumps({"format": 1, "state": Evil()}, protocol=2))
    with pytest.raises(CarvError):
        load_checkpoint(path)
    assert not (tmp_path / "it ran").exists()


def test_one_that_holds_nothing_or_is_no_file_is_damaged(tmp_path: Path) -> None:
    contents: list[Any] = [{"format": 1, "state": {}}, {"format": 1, "state": [1]}, {"format": "x", "state": {"a": 1}}]
    for content in (*contents, [1], {}):
        torch.save(content, tmp_path / "checkpoint")
        with pytest.raises(CarvError, match=r"no checkpoint in .* can be read: checkpoint"):
            load_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "checkpoint").unlink()
    os.mkfifo(tmp_path / "checkpoint")  # which would be waited for
    with pytest.raises(CarvError, match="can be read: checkpoint"):
        load_checkpoint(tmp_path / "checkpoint")


def test_a_newer_format_is_refused(path: Path) -> None:
    torch.save({"format": 2, "state": {}}, path)
    with pytest.raises(CarvError, match="newer carv_3d"):
        load_checkpoint(path)


def test_what_a_run_begins_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint"
    said: list[str] = []
    assert resumed_state(path, False, said.append) is None
    assert said == []
    assert resumed_state(path, True, said.append) is None
    assert said == ["The run had not come to a checkpoint: it begins again."]
    save_checkpoint(path, {"step": 1})
    save_checkpoint(path, {"step": 2})
    assert has_checkpoint(path)
    assert resumed_state(path, False, said.append) is None
    assert resumed_state(path, True, said.append) == {"step": 2}
    assert len(said) == 1
    path.write_bytes(path.read_bytes()[:50])
    assert resumed_state(path, True, said.append) == {"step": 1}
    assert said[1].startswith("Note: checkpoint is truncated or damaged")
    save_checkpoint(path, {"step": 3})  # which leaves the whole one next to it, not the damaged one
    assert load_checkpoint(path)[0] == {"step": 3}
    assert load_checkpoint(previous_path(path))[0] == {"step": 1}
    assert len(path.with_name("checkpoint.damaged").read_bytes()) == 50
    path.write_bytes(b"")
    other = path.with_name("checkpoint.damaged")
    with monkeypatch.context() as patch:  # another process set it aside between reading it and this
        patch.setattr(os, "replace", lambda a, b: (_ for _ in ()).throw(FileNotFoundError(a)))
        assert load_checkpoint(path, resuming=True)[0] == {"step": 1}
        patch.setattr(os, "replace", lambda a, b: (_ for _ in ()).throw(PermissionError(13, "Permission denied", a)))
        with pytest.raises(CarvError, match="checkpoint"):
            load_checkpoint(path, resuming=True)
    assert len(other.read_bytes()) == 50
    assert load_checkpoint(path)[0] == {"step": 1}  # only looked at: nothing is moved
    assert path.read_bytes() == b""


def test_entries_of_the_first_version_have_their_present_names(path: Path) -> None:
    torch.save(
        {"format": 1, "state": {"unet_rows": 5, "host": {"unet_rows": 7, "step": 2}, "other": {"step": 1}}}, path
    )
    assert load_checkpoint(path)[0] == {"nfe": 5, "host": {"nfe": 7, "step": 2}, "other": {"step": 1}}


def test_a_checkpoint_is_bound_to_all_that_it_was_made_with(path: Path) -> None:
    check_made_with(path, {"made_with": {"seed": 1, "data": 2}}, {"seed": 1}, "delete it")
    for made_with in ({"seed": 2}, {"seed": 1, "data": 2}):
        with pytest.raises(
            CarvError, match=f"checkpoint was made with other values of {list(made_with)[-1]}: delete it"
        ):
            check_made_with(path, {"made_with": {"seed": 1}}, made_with, "delete it")


def test_a_fingerprint_is_of_every_number_name_and_shape() -> None:
    def fingerprint(
        names: str = "ab", shape: tuple[int, ...] = (2, 3), last: float = 0.0, more: float = 0.0, **config: Any
    ) -> str:
        module = nn.ParameterDict({name: nn.Parameter(torch.zeros(shape)) for name in names})
        with torch.no_grad():
            module[names[-1]].view(-1)[-1] = last
        return module_fingerprint(module, torch.tensor(more), config=config)

    assert fingerprint() == fingerprint() == fingerprint(_folder="elsewhere")
    changes: list[dict[str, Any]] = [{"names": "ac"}, {"shape": (3, 2)}, {"shape": (6,)}, {"last": 1.0}, {"more": 1.0}]
    others = {fingerprint(**change) for change in [*changes, {"width": 1}, {"width": 2}]}
    assert len({fingerprint(), *others}) == 8
