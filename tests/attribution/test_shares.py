"""Gradients made by several processes: on Ray, by shares, and in stores that are merged; nothing twice."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import noise_images
import numpy as np
import pytest
import torch
from commands import refusal
from fake_ray import FakeRay
from noise_images import save

from carv_3d.attribution import FeatureMaker
from carv_3d.attribution.encoded import EncodedImages
from carv_3d.attribution.folder_images import FolderImages
from carv_3d.attribution.store import RowStore
from carv_3d.cli import main as cli
from carv_3d.errors import CarvError
from carv_3d.io.files import claimed_part

HOLD = """import fcntl, sys, time
handle = open(sys.argv[1], "w")
fcntl.lockf(handle, fcntl.LOCK_EX, 1, int(sys.argv[2]))
print("held", flush=True)
time.sleep(60)"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with six training images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CARV_CACHE", str(tmp_path / "cache"))
    for i in range(6):
        save(tmp_path / "in" / f"{i}.png", i)
    return tmp_path


def words(model: Path, *more: str) -> list[str]:
    return noise_images.words("in/1.png", "in", model, *more)


@pytest.mark.parametrize(("count", "shards"), [(6, 2), (6, 7), (300, 2), (5003, 3), (5003, 39), (5003, 40)])
def test_shares_are_disjoint_whole_and_of_like_size(count: int, shards: int, tmp_path: Path) -> None:
    store = RowStore(tmp_path, {}, count, (1,))
    shares = [store.share(i, shards).tolist() for i in range(shards)]
    assert sorted(i for share in shares for i in share) == list(range(count))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= max(1, count / shards / 8)
    if count >= 128 * shards:  # whole chunks, as they are encoded
        assert all(index // 16 in {i // 16 for i in share} for share in shares for index in share)
        assert sum(len({i // 16 for i in share}) for share in shares) == -(-count // 16)


def test_a_chunk_that_another_process_is_at_is_waited_for_and_made_where_that_is_killed(
    place: Path, sd_teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carv_3d.attribution.encoded.CHUNK", 2)
    items = EncodedImages(FolderImages(place / "in", 16), sd_teacher, place / "latents")
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place / "latents" / ".claims"), "1"], stdout=-1, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    finished: list[list[bool]] = []

    def watch(done: int, total: int) -> bool:
        finished.append(items.store.finished.tolist())
        if len(finished) == 4:  # it was looked at in vain before, and after the others were made
            assert finished[-1] == [True, True, False, False, True, True]
            other.kill()
            other.wait()
        return False

    try:
        with claimed_part(place / "latents", 1) as claimed:
            assert not claimed
        assert items.encode(watch)
    finally:
        other.kill()
    assert items.store.complete
    assert len(finished) >= 5
    whole = EncodedImages(FolderImages(place / "in", 16), sd_teacher, place / "whole")
    assert whole.encode()
    assert np.array_equal(whole.store.rows, items.store.rows)


def test_a_share_encodes_the_images_that_it_needs(
    place: Path, sd_teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carv_3d.attribution.encoded.CHUNK", 2)
    monkeypatch.setattr("carv_3d.attribution.store.UNIT", 2)
    monkeypatch.setattr("carv_3d.attribution.store.UNITS", 1)
    items = EncodedImages(FolderImages(place / "in", 16), sd_teacher, place / "latents")
    assert items.encode(None, 1, 2)
    assert items.store.finished.tolist() == [False, False, True, True, False, False]
    assert items.store.pending(0, 2).tolist() == [0, 1, 4, 5]


class InlineRay(FakeRay):
    """Runs a task where it is given; a worker that dies has it given again."""

    def __init__(self, made: Counter[str]) -> None:
        super().__init__()
        self.results: dict[str, Any] = {}
        self.made, self.died = made, 0
        self.after: list[int] = []  # rows made in all after each task

    def begin(self, function: Any, *given: Any) -> str:
        while True:
            try:
                self.results[str(given[2])] = function(*given)
                self.after.append(sum(self.made.values()))
                return str(given[2])
            except KeyboardInterrupt:  # stands for a kill
                self.died += 1

    def wait(self, waiting: list[str], **how: Any) -> tuple[list[str], list[str]]:
        return waiting[:1], waiting[1:]

    def get(self, reference: str) -> Any:
        return self.results[reference]


def test_on_ray_a_killed_workers_share_is_made_again_and_nothing_twice(
    place: Path, sd_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(sd_folder, "--out", "local")) == 0
    shutil.rmtree(place / "cache")
    made: Counter[str] = Counter()
    ray = InlineRay(made)
    monkeypatch.setitem(sys.modules, "ray", ray)
    # two shares of three images, so that a share holds several
    monkeypatch.setattr("carv_3d.attribution.shares.UNITS", 2)
    features = FeatureMaker.features

    def counted(self: FeatureMaker, keys: Any, *more: Any) -> torch.Tensor:
        if self.role == "train":
            if sum(made.values()) == 4 and not ray.died:
                raise KeyboardInterrupt
            made.update(keys)
        return features(self, keys, *more)

    monkeypatch.setattr(FeatureMaker, "features", counted)
    capsys.readouterr()
    assert cli.main(words(sd_folder, "--out", "ray", "--engine", "ray")) == 0
    assert "share 2/2" in capsys.readouterr().out
    assert (ray.died, ray.after) == (1, [3, 6])
    assert made == {f"{i}.png": 1 for i in range(6)}
    assert Path("ray/scores.csv").read_text() == Path("local/scores.csv").read_text()
    assert "leave it out with --engine ray" in refusal(capsys, *words(sd_folder, "--engine", "ray", "--shard", "0/2"))


def test_stores_that_were_made_apart_are_merged(
    place: Path, sd_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(sd_folder, "--out", "whole")) == 0
    for shard in (0, 1):
        assert cli.main(words(sd_folder, "--out", "x", "--store", f"s{shard}", "--shard", f"{shard}/2")) == 0
    capsys.readouterr()
    assert cli.main(words(sd_folder, "--out", "merged", "--store", "s0", "--merge", "s1")) == 0
    assert "3 gradients are those of s1" in capsys.readouterr().out
    assert Path("merged/scores.csv").read_text() == Path("whole/scores.csv").read_text()
    save(place / "in" / "6.png", 6)
    (place / "new").mkdir()
    said = refusal(capsys, *words(sd_folder, "--out", "no", "--store", "new", "--merge", "s1"))
    assert "the store in s1/latents was made with items = " in said
    assert "is missing; name a store of the same model" in refusal(
        capsys, *words(sd_folder, "--out", "no", "--store", "new", "--merge", "nothing")
    )


def test_merging_checks_keys_and_checksums(tmp_path: Path) -> None:
    def store(name: str, keys: str, count: int = 3) -> RowStore:
        made = RowStore(tmp_path / name, {"model": 1}, count, (2,), list(keys))
        for index in range(count):
            made.write(index, np.full(2, index + 1, np.float32))
        made.flush()
        return made

    full = store("full", "abc")
    full.rows[1] = 9  # torn
    empty = RowStore(tmp_path / "empty", {"model": 1}, 3, (2,), list("abc"))
    empty.write(0, np.full(2, 7, np.float32))
    assert empty.merge(tmp_path / "full") == 1
    assert empty.rows[:, 0].tolist() == [7, 0, 3]
    assert empty.finished.tolist() == [True, False, True]
    store("other", "abd")
    with pytest.raises(CarvError, match="has another key for item 2; name a store of the same"):
        empty.merge(tmp_path / "other")
    RowStore(tmp_path / "model", {"model": 2}, 3, (2,), list("abc"))
    with pytest.raises(CarvError, match="was made with model = 2, and this one with 1"):
        empty.merge(tmp_path / "model")
