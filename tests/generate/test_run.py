"""Whole runs in their folders: what they leave, and what survives kills, full disks and damaged files."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import kill_at_first_checkpoint
from PIL import Image
from tiny_host import TINY

from carv_3d.cli import main as cli
from carv_3d.generate.run import COLUMNS
from carv_3d.generate.trainer import TextTo3D
from carv_3d.io.tables import read_metrics
from carv_3d.runs.checkpoint import load_checkpoint
from carv_3d.runs.listing import find_runs, read_summary, remove_run

FILES = {
    "asset.glb",
    "asset.mtl",
    "asset.obj",
    "asset.png",
    "checkpoint",
    "checkpoint.previous",
    "config.yaml",
    "metrics.csv",
    "preview.png",
    "progress.png",
    "report.html",
    "turntable.gif",
    "turntable.mp4",
}


@pytest.fixture
def words(sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments that make a run tiny, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return [*TINY, f"system.guidance.pretrained_model_name_or_path={sd_folder}"]


def carv(capsys: pytest.CaptureFixture[str], *arguments: str, expect: int = 0) -> str:
    """Run `carv` here; what it printed. A failure must be one sentence on stderr."""
    capsys.readouterr()
    assert cli.main(list(arguments)) == expect
    out, err = capsys.readouterr()
    if expect == 2:
        sentences = [line for line in err.splitlines() if line.startswith("carv: ")]
        assert len(sentences) == 1
        assert "Traceback" not in out + err
        return sentences[0]
    return out


def saved_field(folder: Path) -> torch.Tensor:
    grid: torch.Tensor = load_checkpoint(folder / "checkpoint")[0]["field"]["grid"]
    return grid


def test_a_run_leaves_everything_that_is_promised(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    import trimesh

    out = carv(capsys, "generate", "A red mug!", "--seed", "3", *words, "system.exporter.longest_side=2")
    folder = Path("outputs/a-red-mug-3")
    assert f"open {folder}/report.html" in out
    assert set(os.listdir(folder)) == FILES
    mesh = trimesh.load(folder / "asset.glb", force="mesh")
    mesh.merge_vertices(merge_tex=True, merge_norm=True, digits_vertex=5)  # they are split at the texture's seams
    assert mesh.is_watertight
    assert mesh.extents.max() == pytest.approx(2.0, abs=1e-3)
    assert Image.open(folder / "preview.png").size == (4 * 16 + 3 * 2, 2 * 16 + 2)
    gif = Image.open(folder / "turntable.gif")
    assert (gif.n_frames, gif.size) == (4, (16, 16))  # type: ignore[attr-defined]
    assert gif.info["loop"] == 0  # for ever
    assert (folder / "turntable.mp4").read_bytes()[4:8] == b"ftyp"
    rows = read_metrics(folder / "metrics.csv")
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    assert (folder / "metrics.csv").read_text().splitlines()[0].split(",") == list(COLUMNS)
    assert all(np.isfinite([r[c] for c in ("seconds", "ess", "lr", "nfe")]).all() for r in rows)
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "A red mug!" in report
    assert "<b>yes</b><span>closed</span>" in report
    assert [(run.subject, run.state) for run in find_runs(Path())] == [("A red mug!", "done")]
    assert remove_run(read_summary(folder)) == []
    assert not folder.exists()


def test_the_default_folder_is_never_written_over(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        carv(capsys, "generate", "a red mug", *words)
    assert sorted(os.listdir("outputs")) == ["a-red-mug-0", "a-red-mug-0-2", "a-red-mug-0-3"]
    assert torch.equal(saved_field(Path("outputs/a-red-mug-0")), saved_field(Path("outputs/a-red-mug-0-2")))


def test_an_explicit_folder_in_use_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("mine")
    message = carv(capsys, "generate", "a red mug", "--out", "mine", *words, expect=2)
    assert "mine is not an empty folder" in message
    assert "--resume" in message
    assert os.listdir("mine") == ["letter.txt"]
    assert "letter.txt is there and is no folder; choose another --out" in carv(
        capsys, "generate", "a red mug", "--out", "mine/letter.txt", *words, expect=2
    )
    Path("empty").mkdir()
    carv(capsys, "generate", "a red mug", "--out", "empty", *words)


@pytest.mark.parametrize("prompt", ["../../x", "<script>alert(1)</script>", "a\nb", "$(touch hacked)", "é"])
def test_a_prompt_is_text_and_nothing_else(
    prompt: str, words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    carv(capsys, "generate", prompt, *words)
    assert os.listdir(tmp_path) == ["outputs"]
    (folder,) = (tmp_path / "outputs").iterdir()
    assert set(os.listdir(folder)) == FILES
    assert "<script>alert" not in (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def whole(words: list[str], capsys: pytest.CaptureFixture[str]) -> torch.Tensor:
    """The field of a run that nothing stops, in the folder of that name."""
    carv(capsys, "generate", "a red mug", "--out", "whole", *words)
    return saved_field(Path("whole"))


@pytest.mark.usefixtures("heeded_signals")
def test_stopped_by_a_signal_then_resumed_is_the_same_run(
    words: list[str], whole: torch.Tensor, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = TextTo3D.train_step

    def interrupted(self: TextTo3D) -> dict[str, float]:
        row = step(self)
        if self.step == 3:  # no checkpoint is due here
            os.kill(os.getpid(), signal.SIGINT)
        return row

    with monkeypatch.context() as patch:
        patch.setattr(TextTo3D, "train_step", interrupted)
        out = carv(capsys, "generate", "a red mug", "--out", "cut", *words, expect=130)
    assert "carv generate --resume --out cut" in out
    assert not Path("cut/asset.glb").exists()
    assert "Resumed after step 3" in carv(capsys, "generate", "--resume", "--out", "cut")
    assert torch.equal(whole, saved_field(Path("cut")))
    assert set(os.listdir("cut")) == FILES
    assert [r["step"] for r in read_metrics(Path("cut/metrics.csv"))] == [1, 2, 3, 4]
    assert Path("cut/asset.glb").read_bytes() == Path("whole/asset.glb").read_bytes()


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_run(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    long = ["trainer.max_steps=24", "checkpoint.every_n_train_steps=3", "trainer.val_check_interval=7"]
    killed_at = kill_at_first_checkpoint(Path("cut"), "generate", "a red mug", *words, *long)
    assert killed_at < 24
    assert not Path("cut/report.html").exists()
    Path("cut/.checkpoint.123.tmp.new").write_text("half")  # a kill may leave one, and here surely
    out = carv(capsys, "generate", "a red mug", "--resume", "--out", "cut")
    assert f"Resumed after step {killed_at}" in out
    carv(capsys, "generate", "a red mug", "--out", "whole", *words, *long)
    assert torch.equal(saved_field(Path("whole")), saved_field(Path("cut")))
    assert [r["step"] for r in read_metrics(Path("cut/metrics.csv"))] == list(range(1, 25))
    assert set(os.listdir("cut")) == FILES


def test_killed_before_the_first_checkpoint_it_begins_again(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    carv(capsys, "generate", "a red mug", *words)
    folder = Path("outputs/a-red-mug-0")
    whole = saved_field(folder)
    for name in FILES - {"config.yaml", "metrics.csv"}:
        (folder / name).unlink()
    assert "begins again" in carv(capsys, "generate", "a red mug", "--resume", *words)
    assert torch.equal(saved_field(folder), whole)
    assert os.listdir("outputs") == ["a-red-mug-0"]


def test_resume_takes_the_newest_of_the_default_folders(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    carv(capsys, "generate", "a red mug", *words)
    carv(capsys, "generate", "a red mug", *words)
    out = carv(capsys, "generate", "a red mug", "--resume")
    assert "outputs/a-red-mug-0-2" in out
    assert "Resumed after step 4" in out  # it was done: the outputs are made again


def test_resume_may_lengthen_a_run_but_not_change_it(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    carv(capsys, "generate", "a red mug", "--out", "run", *words)
    before = (Path("run/config.yaml").read_text(), saved_field(Path("run")))
    for change, named in (
        (["system.guidance.num_draws=4"], "system.guidance.num_draws = 2"),
        (["--seed", "5"], "seed = 0"),
        (["a blue mug"], "system.prompt_processor.prompt = 'a red mug'"),
    ):
        message = carv(capsys, "generate", "--resume", "--out", "run", *change, expect=2)
        assert named in message
        assert "cannot change it" in message
    message = carv(capsys, "generate", "--resume", "--out", "run", "trainer.max_steps=2", expect=2)
    assert "is at step 4, beyond trainer.max_steps = 2; give trainer.max_steps=4 or more, or none" in message
    assert Path("run/config.yaml").read_text() == before[0]
    carv(capsys, "generate", "--resume", "--out", "run", "trainer.max_steps=6")
    assert load_checkpoint(Path("run/checkpoint"))[0]["step"] == 6
    assert not torch.equal(saved_field(Path("run")), before[1])


def test_nothing_to_resume_is_one_sentence(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = carv(capsys, "generate", "a red mug", "--resume", *words, expect=2)
    assert "there is no run to resume in outputs/a-red-mug-0" in message
    assert not Path("outputs").exists()


def test_a_truncated_checkpoint_falls_back_and_two_are_one_sentence(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    carv(capsys, "generate", "a red mug", "--out", "run", *words)
    whole = saved_field(Path("run"))
    checkpoint = Path("run/checkpoint")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    out = carv(capsys, "generate", "--resume", "--out", "run")
    assert "truncated or damaged" in out
    assert "Resumed after step 2" in out
    assert torch.equal(saved_field(Path("run")), whole)
    for name in ("checkpoint", "checkpoint.previous"):
        Path("run", name).write_bytes(b"PK\x03\x04")
    assert "no checkpoint in run can be read" in carv(capsys, "generate", "--resume", "--out", "run", expect=2)


def test_a_disk_that_fills_up_during_a_checkpoint_keeps_the_one_before(
    words: list[str], whole: torch.Tensor, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = TextTo3D.state_dict

    def fill_the_disk(self: TextTo3D) -> dict[str, Any]:
        if self.step == 4:
            patch.setattr(os, "fsync", full)
        return save(self)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(TextTo3D, "state_dict", fill_the_disk)
        message = carv(capsys, "generate", "a red mug", "--out", "cut", *words, expect=2)
    assert "the disk is full" in message
    assert "the checkpoint of step 2 is intact" in message
    assert "carv generate --resume --out cut" in message
    assert load_checkpoint(Path("cut/checkpoint"))[0]["step"] == 2
    carv(capsys, "generate", "--resume", "--out", "cut")
    assert torch.equal(whole, saved_field(Path("cut")))


@pytest.mark.skipif(sys.platform == "win32", reason="there are no file size limits to set")
def test_a_file_size_limit_is_reported_with_its_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # the checkpoint is larger than that
    try:
        message = carv(capsys, "generate", "a red mug", "--out", "run", *words, expect=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "a file may not be so large here: run/" in message
    assert "ulimit -f" in message
    assert not Path("run/checkpoint").exists()


def test_memory_that_runs_out_is_reported_and_the_checkpoint_named(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = TextTo3D.train_step

    def greedy(host: TextTo3D) -> dict[str, float]:
        if host.step == 3:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate ...")
        return step(host)

    monkeypatch.setattr(TextTo3D, "train_step", greedy)
    message = carv(capsys, "generate", "a red mug", "--out", "run", *words, expect=2)
    assert "memory ran out; take a smaller system.geometry.resolution" in message
    assert "the checkpoint of step 2 is intact" in message

    def no_room(self: TextTo3D, *args: Any, **more: Any) -> None:
        raise MemoryError("Unable to allocate 16. GiB")

    monkeypatch.setattr(TextTo3D, "__init__", no_room)
    for extra in ([], ["--dry-run"]):
        assert "memory ran out" in carv(capsys, "generate", "a red mug", "--out", "new", *words, *extra, expect=2)
    assert not Path("new").exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*args: Any, **more: Any) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("carv_3d.generate.run.TextTo3D", loaded)
    Path("file").write_text("")
    message = carv(capsys, "generate", "a red mug", "--out", "file/run", *words, expect=2)
    assert "file/run" in message
    assert Path("file").read_text() == ""


def test_a_folder_where_another_run_is_at_work_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    carv(capsys, "generate", "a red mug", "--out", "run", *words)
    handle = os.open("run", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        message = carv(capsys, "generate", "--resume", "--out", "run", expect=2)
    finally:
        os.close(handle)
    assert "another run is at work in run" in message


def test_a_field_without_a_surface_still_gives_images_and_a_report(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    empty = "system.exporter.level=1.0e+6"
    message = carv(capsys, "generate", "a red mug", "--out", "run", *words, empty, expect=2)
    assert "no mesh" in message
    assert set(os.listdir("run")) == FILES - {"asset.glb", "asset.obj", "asset.mtl", "asset.png"}
    assert "No mesh was made" in Path("run/report.html").read_text(encoding="utf-8")


def test_a_disk_that_fills_up_while_the_mesh_is_written_says_how_to_resume(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_bytes

    def full(path: Path, payload: bytes) -> int:
        if path.suffix == ".glb":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, payload)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        message = carv(capsys, "generate", "a red mug", "--out", "run", *words, expect=2)
    assert "the disk is full: run/asset.glb could not be written" in message
    assert "resume with: carv generate --resume --out run" in message
    carv(capsys, "generate", "--resume", "--out", "run")
    assert set(os.listdir("run")) == FILES


def test_a_mesh_that_is_not_closed_is_reported(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import trimesh

    monkeypatch.setattr(trimesh.Trimesh, "is_watertight", property(lambda mesh: False))
    assert "the mesh is not closed" in carv(capsys, "generate", "a red mug", "--out", "run", *words)
    assert "<b>no</b><span>closed</span>" in Path("run/report.html").read_text(encoding="utf-8")


def test_a_dry_run_prints_and_writes_nothing(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, sd_folder: Path
) -> None:
    out = carv(capsys, "generate", "a red mug", "--dry-run", *words)
    assert "num_draws: 2" in out
    assert "prompt: a red mug" in out
    assert "# folder: outputs/a-red-mug-0" in out
    assert f"# model: {sd_folder}" in out
    assert "# time: about" in out
    assert "GiB" in out
    assert os.listdir(tmp_path) == []
