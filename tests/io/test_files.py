"""Files are written whole or not at all, and a prompt never becomes a path."""

from __future__ import annotations

import errno
import os
import re
import threading
from pathlib import Path

import pytest

from carv_3d.errors import CarvError
from carv_3d.io.files import (
    check_unused,
    check_writable,
    claimed,
    expanded,
    folder_for,
    locked,
    make_folder,
    newest_run,
    replaced_folder,
    slug,
    unused,
    write_atomic,
    write_via,
)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a red mug", "a-red-mug"),
        ("../../x", "x"),
        ("/etc/passwd", "etc-passwd"),
        ("<script>alert(1)</script>", "script-alert-1-script"),
        ("  Ein blaues Häuschen! ", "ein-blaues-hauschen"),
        ("...", "prompt"),
        ("日本", "prompt"),
        ("-rf", "rf"),
    ],
)
def test_slug_known_values(text: str, name: str) -> None:
    assert slug(text) == name


def test_slug_is_short_and_plain_for_anything() -> None:
    for text in ("x" * 500, "a " * 200, "".join(map(chr, range(32, 700)))):
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?", slug(text))


def test_write_atomic_replaces_the_whole_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_atomic(file, "old and long")
    write_atomic(file, b"new")
    assert file.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_file_is_put_in_its_place_and_never_written_into(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    os.link(tmp_path / "a.txt", tmp_path / "old.txt")
    write_atomic(tmp_path / "a.txt", "new")
    assert ((tmp_path / "a.txt").read_text(), (tmp_path / "old.txt").read_text()) == ("new", "old")


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, r"the disk is full: \S*/a.txt could not be written; free some space and try again$"),
        (errno.EDQUOT, r"your quota of the disk is full: \S*/a.txt "),
        (errno.EFBIG, r"a file may not be so large here: \S*/a.txt could not be written; raise the limit \(ulimit -f"),
    ],
)
def test_a_full_disk_keeps_the_old_file(
    number: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.txt"
    write_atomic(file, "old")

    def full(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CarvError, match=sentence):
        write_atomic(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_writer_that_fails_half_way_keeps_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    write_atomic(file, "old")

    def write(temporary: Path) -> None:
        assert temporary.suffix == ".bin"  # writers go by the suffix
        temporary.write_bytes(b"half")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        write_via(file, write)
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CarvError, match=r"cannot write .*file") as caught:
        make_folder(tmp_path / "file" / "x")
    assert "\n" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_named_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(tmp_path)
    check_writable(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(CarvError, match=f"cannot write {re.escape(str(path))}"):
            check_writable(path)
    for long in (tmp_path / ("n" * 300), tmp_path / ("n" * 300) / "x"):
        with pytest.raises(CarvError, match=r"^the name 'n{30,40} \.\.\. is too long for this file system; "):
            check_writable(long)
    with monkeypatch.context() as patch:  # /proc, say: it allows everything and takes no file

        def touch(path: Path) -> None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

        patch.setattr(Path, "touch", touch)
        with pytest.raises(CarvError, match=r"cannot write .*x: No such file or directory"):
            check_writable(tmp_path / "x")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root, who may write anywhere
    with pytest.raises(CarvError, match="Permission denied"):
        check_writable(tmp_path / "a" / "b")
    assert os.listdir(tmp_path) == ["file"]


def test_a_home_folder_is_found_and_nobodys_is_refused() -> None:
    assert expanded("~/x") == Path.home() / "x"
    assert expanded(Path("x~")) == Path("x~")
    with pytest.raises(CarvError, match="~nobody-of-this-name/x begins with ~"):
        expanded("~nobody-of-this-name/x")
    for no_path in ("a\0b", "x/" * 2000, "\ud800"):
        with pytest.raises(CarvError, match=r"give another$"):
            expanded(no_path)


def test_the_first_name_that_is_not_there(tmp_path: Path) -> None:
    for name in ("run", "run-2", "run-4"):
        assert unused(tmp_path / "run").name == {"run": "run", "run-2": "run-2", "run-4": "run-3"}[name]
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("")


def test_an_empty_folder_that_a_kill_left_is_taken_and_one_at_work_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    assert unused(folder) == folder
    with claimed(folder):
        assert unused(folder).name == "run-2"
    (tmp_path / "file").write_text("")
    assert unused(tmp_path / "file").name == "file-2"


def test_a_claimed_folder_is_gone_if_empty_and_never_taken_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a" / "run"
    with claimed(folder):
        assert folder.is_dir()
    assert not (tmp_path / "a").exists()
    with pytest.raises(KeyboardInterrupt), claimed(folder):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    with claimed(folder):
        (folder / "kept").write_text("")
    assert folder.exists()
    (folder / "kept").unlink()
    with claimed(folder):  # another comes at the same instant, who saw no folder yet
        monkeypatch.setattr("carv_3d.io.files._not_there", lambda path: [folder, folder.parent])
        with pytest.raises(CarvError, match="another run is at work"), claimed(folder):
            raise AssertionError("two have it")
        assert folder.exists()


def test_a_folder_in_use_or_a_file_is_refused_and_an_empty_folder_is_not(tmp_path: Path) -> None:
    check_unused(tmp_path)
    check_unused(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("gone")
    for path, sentence in (
        (tmp_path, "is not an empty folder; choose another --out, or resume$"),
        (tmp_path / "file", "is there and is no folder; choose another --out$"),
        (tmp_path / "link", "is a link to gone, which is not there; make that folder, or choose another --out, or"),
    ):
        with pytest.raises(CarvError, match=f"{re.escape(str(path))} {sentence}"):
            check_unused(path, "choose another --out, or resume")


def test_a_folder_that_is_held_for_an_instant_is_waited_for(tmp_path: Path) -> None:
    listed = locked(tmp_path, 0)
    listed.__enter__()
    timer = threading.Timer(0.03, listed.__exit__, (None, None, None))
    timer.start()
    with pytest.raises(CarvError, match="another run is at work"), locked(tmp_path, 0):
        raise AssertionError("two have it")
    with locked(tmp_path):
        timer.join()


def fill(folder: Path, text: str, stop: type[BaseException] | None = None) -> None:
    with replaced_folder(folder) as new:
        (new / "part").mkdir()
        (new / "part" / "a.txt").write_text(text)
        if stop is not None:
            raise stop
        (new / "b.txt").write_text(text)


def held(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_is_replaced_with_all_that_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    fill(folder, "old")
    (folder / "stray.txt").write_text("x")
    fill(folder, "new")
    assert held(folder) == {str(Path("part", "a.txt")): "new", "b.txt": "new"}
    assert os.listdir(folder.parent) == ["model"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_a_folder_is_left_whole_when_its_successor_is_cut_off(stop: type[BaseException], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    fill(folder, "old")
    before = held(folder)
    with pytest.raises(stop):
        fill(folder, "new", stop)
    assert held(folder) == before
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("fails_at", ["old", "new"])
def test_a_folder_comes_back_when_a_rename_fails(
    fails_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename = tmp_path / "model", Path.rename
    fill(folder, "old")
    before = held(folder)

    def refuse(self: Path, target: Path) -> Path:
        if (fails_at == "old") == (self == folder) and self.name != ".model-old":
            raise OSError(errno.EACCES, "no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(CarvError, match="cannot write"):
        fill(folder, "new")
    assert held(folder) == before
    assert os.listdir(tmp_path) == ["model"]


def test_a_kill_between_the_renames_is_mended_by_the_next_call(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    fill(folder, "old")
    before = held(folder)
    folder.rename(tmp_path / ".model-old")
    (tmp_path / ".model-new").mkdir()
    (tmp_path / ".model-new" / "half").write_text("h")
    recorded: list[dict[str, str]] = []
    with pytest.raises(ValueError), replaced_folder(folder):  # noqa: PT011, PT012 -- the block's own
        recorded.append(held(folder))  # it is back before the work begins
        raise ValueError
    assert recorded == [before]
    assert held(folder) == before
    fill(folder, "new")
    assert set(held(folder).values()) == {"new"}
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_for_work_that_came_to_nothing_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"

    def work(name: str | None) -> None:
        with folder_for(folder):
            assert folder.is_dir()
            if name is not None:
                (folder / name).touch()
            raise KeyError

    with pytest.raises(KeyError):
        work(None)
    assert os.listdir(tmp_path) == []
    with pytest.raises(KeyError):
        work("kept")
    assert os.listdir(folder) == ["kept"]
    own = tmp_path / "own"
    own.mkdir()
    with folder_for(own):
        pass
    assert own.is_dir()  # it was there before
    with pytest.raises(CarvError, match="cannot write"), folder_for(folder / "kept" / "c"):
        pytest.fail("there is no such folder")


def test_the_newest_run_is_found_over_gaps_by_its_time(tmp_path: Path) -> None:
    path = tmp_path / "a-[x]-0"
    assert newest_run(path) is None
    for name, time in (("a-[x]-0-2", 30), ("a-[x]-0-12", 20), ("a-[x]-0-x", 99), ("a-[x]-01", 99), ("a-x-0", 99)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
        os.utime(tmp_path / name / "config.yaml", (time, time))
    (tmp_path / "a-[x]-0-13").mkdir()  # no run
    assert newest_run(path) == tmp_path / "a-[x]-0-2"
    os.utime(tmp_path / "a-[x]-0-12" / "config.yaml", (30, 30))
    assert newest_run(path) == tmp_path / "a-[x]-0-12"  # the higher number, where times are equal
    assert newest_run(path, lambda folder: folder.name != "a-[x]-0-12") == tmp_path / "a-[x]-0-2"
    path.mkdir()
    (path / "config.yaml").touch()
    assert newest_run(path) == path


def test_who_reads_a_file_that_is_replaced_reads_the_old_one_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_atomic(file, "old and long")
    with file.open() as handle:
        assert handle.read(3) == "old"
        write_atomic(file, "new")
        assert handle.read() == " and long"


@pytest.mark.parametrize("name", ["report.html", "asset.glb", "preview.png", "metrics.csv", "turntable.mp4"])
def test_a_folder_with_the_name_of_a_file_is_refused_before_the_work(name: str, tmp_path: Path) -> None:
    (tmp_path / "run" / name).mkdir(parents=True)
    for begin in (claimed, folder_for):
        sentence = f"run/{name} is a folder, and its name is a file's; move it away"
        with pytest.raises(CarvError, match=sentence), begin(tmp_path / "run"):
            raise AssertionError("the work began")
    assert os.listdir(tmp_path / "run") == [name]


def test_folders_that_a_run_makes_itself_are_left_alone(tmp_path: Path) -> None:
    for name in ("checkpoint", "checkpoint.previous", "previews", "model", "scene-3", "runs"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "link.png").symlink_to(tmp_path / "elsewhere")  # which a file would take the place of
    make_folder(tmp_path / "run")
