"""`carv runs`: what is said of each run, and what `carv runs clean` removes and leaves."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import loaded_by, refusal

from carv_3d.cli import main as cli
from carv_3d.io.files import locked
from carv_3d.runs.listing import FILES, find_runs, read_summary, remove_run

Make = Callable[..., Path]


class Terminal(io.StringIO):
    """What somebody types."""

    def isatty(self) -> bool:
        """It is one."""
        return True


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes the files of a run of carv generate."""
    monkeypatch.chdir(tmp_path)

    def make(name: str, step: int = 3, steps: int = 5, prompt: str = "a red mug", files: tuple[str, ...] = ()) -> Path:
        folder = Path(name)
        folder.mkdir(parents=True)
        config = f"system:\n  prompt_processor:\n    prompt: {prompt!r}\ntrainer:\n  max_steps: {steps}\n"
        (folder / "config.yaml").write_text(config, encoding="utf-8")
        rows = "".join(f"{i},{'0.5' if i == 2 else ''},\n" for i in range(1, step + 1))
        (folder / "metrics.csv").write_text(f"step,iou,psnr\n{rows}", encoding="utf-8")
        for file in ("checkpoint", *files):
            (folder / file).write_bytes(bytes(1000))
        return folder

    return make


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> list[list[str]]:
    """The cells of each line."""
    assert cli.main(["runs", *words]) == 0
    return [[cell for cell in line.split("  ") if cell] for line in capsys.readouterr().out.splitlines()]


def test_each_run_has_a_line_with_how_far_it_is(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("outputs/stopped")
    make("outputs/done", 5, files=("report.html",))
    make("outputs/sweep/runs/base/00-mug-0", 4, 9, "a green tree", files=("result.json",))
    make("outputs/deep/a/b/c/d/out-of-reach")
    (make("outputs/damaged") / "config.yaml").write_text("- 1", encoding="utf-8")
    lines = shown(capsys)
    assert [cell.strip() for cell in lines[0]] == ["run", "of", "step", "state", "score", "size"]
    rows = {line[0]: [cell.strip() for cell in line[1:]] for line in lines[1:]}
    assert rows["outputs/stopped"][:4] == ["a red mug", "3/5", "stopped", "IoU 0.50"]
    assert rows["outputs/done"][:3] == ["a red mug", "5/5", "done"]
    assert rows["outputs/done"][-1] == "2.1 kB"
    assert rows["outputs/sweep/runs/base/00-mug-0"][:3] == ["a green tree", "4/9", "done"]
    assert "outputs/damaged" in rows
    assert "must hold groups of options" in " ".join(lines[-1])
    assert not any("out-of-reach" in name for name in rows)


def test_a_run_that_is_extended_or_at_work_is_not_done(make: Make) -> None:
    folder = make("extended", 5, 8, files=("report.html",))
    assert [run.state for run in find_runs(Path())] == ["stopped"]
    with locked(folder):
        assert [run.state for run in find_runs(Path())] == ["running"]
        (folder / "config.yaml").unlink()  # not a damaged one, which carv runs clean would take
        assert [(run.state, run.note) for run in find_runs(Path())] == [("running", "")]
    assert [(run.state, run.note) for run in find_runs(Path())] == [("damaged", "extended/config.yaml is missing")]


def test_links_are_not_followed(make: Make) -> None:
    folder = make("runs/one")
    Path("runs/two").symlink_to(folder.resolve())
    assert [run.folder for run in find_runs(Path("runs"))] == [folder]


def test_of_a_distillation_the_model_is_named(make: Make) -> None:
    (make("distilled") / "config.yaml").write_text("model: carv-tiny\nsteps: 7\n", encoding="utf-8")
    (run,) = find_runs(Path())
    assert (run.subject, run.steps, run.state) == ("carv-tiny", 7, "stopped")


@pytest.mark.parametrize("text", ["", "model: 3\n", "trainer: 1\n", "system:\n  prompt_processor: x\n"])
def test_what_names_neither_prompt_nor_model_is_damaged(text: str, make: Make) -> None:
    (make("run") / "config.yaml").write_text(text, encoding="utf-8")
    (run,) = find_runs(Path())
    assert (run.state, run.subject) == ("damaged", "")
    assert "names no prompt and no model" in run.note


def test_odd_steps_and_scores_are_left_out(make: Make) -> None:
    (make("run") / "metrics.csv").write_text("step,iou\ninf,nan\nnan,0.25\n,1e999\n", encoding="utf-8")
    (run,) = find_runs(Path())
    assert (run.step, run.score) == (0, "IoU 0.25")


def test_clean_asks_and_removes_what_a_run_wrote_alone(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make("outputs/done", 5, files=("report.html",))
    written = tuple(name for name in FILES if name not in ("config.yaml", "metrics.csv", "report.html", "result.json"))
    stopped, other = make("outputs/stopped", files=written), make("outputs/other")
    (other / "notes.txt").write_text("mine", encoding="utf-8")
    (other / "model").mkdir()

    for answer, gone in (("n\n", False), ("\n", False), ("yes\n", True)):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        assert cli.main(["runs", "clean"]) == 0
        said = capsys.readouterr().out
        assert "Remove 2 runs, " in said
        assert ("Nothing was removed." in said) is not gone
        assert stopped.exists() is not gone
    assert "Left in outputs/other: model, notes.txt" in said
    assert sorted(os.listdir(other)) == ["model", "notes.txt"]
    assert (Path("outputs/done") / "report.html").exists()
    assert cli.main(["runs", "clean", "--state", "done", "--yes"]) == 0
    assert not Path("outputs/done").exists()
    assert "There are no stopped runs" in " ".join(" ".join(line) for line in shown(capsys, "clean")[-1:])


def test_a_running_run_and_a_link_are_not_removed(make: Make) -> None:
    folder = make("run")
    Path("link").symlink_to(folder)
    before = sorted(os.listdir(folder))
    with locked(folder), pytest.raises(Exception, match=r"at work in .*run; wait for it, or stop it with"):
        remove_run(read_summary(folder, held=True))
    with pytest.raises(Exception, match="link is a link; remove what it leads to by hand"):
        remove_run(read_summary(Path("link")))
    assert sorted(os.listdir(folder)) == before
    (folder / "preview.png").symlink_to("/etc/hostname")
    assert remove_run(read_summary(folder)) == []
    assert Path("/etc/hostname").exists()


def test_a_run_that_was_resumed_while_the_question_stood_is_kept(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = make("outputs/a"), make("outputs/b")
    monkeypatch.setattr("sys.stdin", Terminal())

    def resume_then_agree(question: str) -> str:
        (folder / "metrics.csv").write_text("step,iou\n4,0.5\n5,0.6\n", encoding="utf-8")
        (folder / "report.html").touch()
        return "y"

    monkeypatch.setattr("builtins.input", resume_then_agree)
    assert cli.main(["runs", "clean"]) == 2
    assert "1 of 2 runs were removed" in (said := capsys.readouterr().err)
    assert "outputs/a is now done at step 5, and was stopped at step 3 when it was listed" in said
    assert (folder / "checkpoint").exists()
    assert not other.exists()


@pytest.mark.parametrize("error", [EOFError(), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")])
def test_an_answer_that_is_none_removes_nothing(
    error: Exception, make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make("outputs/stopped")
    monkeypatch.setattr("sys.stdin", Terminal())

    def no_answer(question: str) -> str:
        raise error

    monkeypatch.setattr("builtins.input", no_answer)
    assert cli.main(["runs", "clean"]) == 0
    assert capsys.readouterr().out.endswith("\nNothing was removed.\n")
    assert folder.exists()


def test_what_vanishes_while_runs_are_listed_ends_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, gone = make("kept"), make("gone")
    Path("empty").mkdir()
    scan, state = os.scandir, os.lstat

    def vanishing(path: str | Path) -> object:
        if str(path) == "empty":
            raise FileNotFoundError(2, "No such file or directory")
        return scan(path)

    def removed_meanwhile(path: str | Path) -> os.stat_result:
        if str(path).startswith("gone/") and gone.exists():
            gone.rename(".gone")
        if str(path) == "kept/checkpoint":
            raise FileNotFoundError(2, "No such file or directory")
        return state(path)

    monkeypatch.setattr("carv_3d.runs.listing.os.scandir", vanishing)
    size = sum(state(kept / name).st_size for name in ("config.yaml", "metrics.csv"))
    monkeypatch.setattr("carv_3d.io.files.os.lstat", removed_meanwhile)
    assert [(str(run.folder), run.size) for run in find_runs(Path())] == [("kept", size)]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([""], "the folder is empty text; name one, such as carv runs outputs"),
        (["clean", ""], "the folder is empty text"),
        (["nowhere"], "there is no folder nowhere; name one with runs in it"),
        (["a", "b"], "2 folders were given; name one"),
        (["--yes"], "--yes is of carv runs clean"),
        (["clean", ".", "--state", "gone"], "['gone']; it must be a list of words among stopped, done, damaged"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], sentence: str, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in refusal(capsys, "runs", *words)


def test_without_a_terminal_nothing_is_removed(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make("outputs/stopped")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert cli.main(["runs", "clean"]) == 2
    assert "there is nobody to ask; add --yes" in capsys.readouterr().err
    assert folder.exists()


def test_control_characters_of_a_prompt_are_not_printed(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    (make("run") / "config.yaml").write_text('model: "a\\e[31m"\n', encoding="utf-8")
    shown(capsys, ".")
    assert cli.main(["runs", "."]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_list_needs_no_torch() -> None:
    assert loaded_by("import carv_3d.cli.runs", "torch", "diffusers") == set()
