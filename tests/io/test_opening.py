"""Files that others made are opened in one place: regular ones alone, of at most a size, with tensors as data."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from carv_3d.errors import CarvError
from carv_3d.io.files import MissingFileError, open_file, shown_path
from carv_3d.io.tensor_files import check_finite, load_tensors, read_header


@contextmanager
def bound(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's name is short
        server.bind(path.name)
        os.chdir(here)
        yield


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (os.mkfifo, "is a pipe, and a file is due; mend it"),
        (os.mkdir, "is a folder, and a file is due; mend it"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, and a file is due; mend it"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
        (lambda path: path.symlink_to("nowhere"), "is missing; mend it"),
    ],
)
def test_what_is_no_regular_file_is_not_opened(make: Callable[[Path], object], why: str, tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(CarvError, match=why):
        open_file(tmp_path / "a", "mend it")


def test_a_socket_and_a_name_that_none_can_have(tmp_path: Path) -> None:
    with bound(tmp_path / "a"), pytest.raises(CarvError, match="is a socket"):
        open_file(tmp_path / "a", "mend it")
    with pytest.raises(CarvError, match="is no name that a file can have; mend it"):
        open_file(tmp_path / "a\0b", "mend it")
    with pytest.raises(MissingFileError):
        open_file(tmp_path / "b", "mend it")


def test_a_link_is_followed_and_a_size_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to("a")
    with open_file(tmp_path / "b", "mend it", limit=3) as handle:
        assert handle.read() == b"abc"
    with pytest.raises(CarvError, match="is larger than"):
        open_file(tmp_path / "b", "mend it", limit=2)


def test_a_path_is_shown_as_text_that_can_be_written() -> None:
    assert shown_path(os.fsdecode(b"caf\xe9")) == r"caf\xe9"
    assert shown_path("café") == "café"


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("content", [Evil(), [1], {"a": 1}, {"a": [torch.zeros(1)]}])
def test_a_file_of_torch_holds_tensors_by_name_alone(
    content: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, "a.bin")
    with pytest.raises(CarvError, match=r"a\.bin (is damaged|does not hold tensors by name).*; mend it"):
        load_tensors(Path("a.bin"), "mend it")
    assert not Path("evil").exists()
    Path("a.bin").write_bytes(pickle.dumps(content))
    with pytest.raises(CarvError, match=r"a\.bin"):
        load_tensors(Path("a.bin"), "mend it")


def test_tensors_of_either_format_read_back(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.int64)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    torch.save(tensors, tmp_path / "a.bin")
    for name in ("a.safetensors", "a.bin"):
        read = load_tensors(tmp_path / name, "mend it")
        assert all(torch.equal(read[key], value) for key, value in tensors.items())
    assert read_header(tmp_path / "a.safetensors", "") == {"a": ("F32", (2, 3)), "b": ("I64", (2,))}


def test_numbers_that_are_not_finite_are_counted() -> None:
    check_finite({"a": torch.tensor([65504.0, 65504.0], dtype=torch.float16), "n": torch.tensor([1])}, "it", "mend it")
    with pytest.raises(CarvError, match="it: a holds 2 numbers that are NaN or infinite; mend it"):
        check_finite({"a": torch.tensor([float("nan"), 1.0, float("-inf")])}, "it", "mend it")
