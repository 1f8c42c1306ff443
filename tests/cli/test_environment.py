"""No home folder, no cache, a notebook's backend: what a command settles before it begins."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from commands import refusal

from carv_3d.cli import environment as settling
from carv_3d.cli.environment import settle_environment
from carv_3d.errors import CarvError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settling.tempfile, "tempdir", str(tmp_path))


def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No HOME, and no passwd entry for the user."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda user: {}[user])


def test_a_backend_of_a_notebook_is_set_aside(tmp_path: Path) -> None:
    code = (
        "from carv_3d.cli.environment import settle_environment; settle_environment()\n"
        "import matplotlib; print(matplotlib.get_backend())"
    )
    own = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "module://matplotlib_inline.of_no_such_name"}
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=True)
    assert done.stdout.lower() == "agg\n"


def test_switches_for_debugging_are_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"NUMBA_DISABLE_JIT": "1"}
    monkeypatch.setattr(sys, "warnoptions", ["error::SyntaxWarning"])
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("error")
        settle_environment(environment)
        warnings.warn("of a library", SyntaxWarning, stacklevel=1)
        monkeypatch.setattr(sys, "warnoptions", [])
        warnings.simplefilter("error")
        settle_environment({})
        with pytest.raises(SyntaxWarning):
            warnings.warn("of one's own tests", SyntaxWarning, stacklevel=1)
    assert environment["NUMBA_DISABLE_JIT"] == "0"
    assert [str(warning.message) for warning in shown] == ["of a library"]


def test_where_a_cache_can_be_kept_nothing_is_moved(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    settle_environment(environment)
    assert not {"NUMBA_CACHE_DIR", "MPLCONFIGDIR"} & set(environment)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("cause", ["no home", "a file in its place"])
def test_without_a_place_for_caches_they_lie_under_tmpdir(
    cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {}
    if cause == "no home":
        nowhere(monkeypatch)
    else:
        (tmp_path / "file").touch()
        environment["XDG_CACHE_HOME"] = str(tmp_path / "file" / "cache")
    settle_environment(environment)
    place = tmp_path / f"carv_3d-{os.getuid()}"
    assert environment["NUMBA_CACHE_DIR"] == environment["MPLCONFIGDIR"] == str(place)
    assert place.stat().st_mode & 0o777 == 0o700
    again = {name: value for name, value in environment.items() if name == "XDG_CACHE_HOME"}
    settle_environment(again)
    assert again["NUMBA_CACHE_DIR"] == str(place)


def test_a_folder_that_others_can_write_is_not_taken_for_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numba runs what lies in its cache."""
    nowhere(monkeypatch)
    place = tmp_path / f"carv_3d-{os.getuid()}"
    for make in (place.mkdir, lambda: place.symlink_to(tmp_path), place.touch):
        make()
        place.chmod(0o777)
        environment: dict[str, str] = {}
        settle_environment(environment)
        chosen = Path(environment["NUMBA_CACHE_DIR"])
        assert chosen != place
        assert chosen.stat().st_mode & 0o777 == 0o700
        place.rmdir() if place.is_dir() and not place.is_symlink() else place.unlink()


def test_a_numba_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CarvError, match=r"file/x cannot be written; set NUMBA_CACHE_DIR to a folder that can be"):
        settle_environment({"NUMBA_CACHE_DIR": str(tmp_path / "file" / "x")})


def test_attribute_without_a_cache_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere(monkeypatch)
    monkeypatch.setenv("NUMBA_CACHE_DIR", os.getcwd())
    for name in ("CARV_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert refusal(capsys, "attribute", "a red mug") == (
        "carv: the cache ~/.cache/carv_3d cannot be written; set CARV_CACHE to a folder that can be"
    )


def test_what_attribute_cannot_write_is_refused_before_the_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("carv_3d.teachers.load.load_teacher", lambda *_, **__: pytest.fail("work was done"))
    Path("file").touch()
    monkeypatch.setenv("CARV_CACHE", str(Path("cache").absolute()))
    assert "cannot write file/x" in refusal(capsys, "attribute", "a red mug", "--out", "file/x")
    assert "cannot write file/x" in refusal(capsys, "attribute", "a red mug", "--store", "file/x")
    unwritable = refusal(capsys, "attribute", "a red mug", "--store", "/proc/x")  # where root may write, and cannot
    assert "cannot write /proc/x" in unwritable
    assert "loading" not in unwritable
    for place, sentence in (
        ("file", "file is neither a folder of training images nor a .tar; name a folder"),
        ("none", "there are no training images at none; name a folder of images, or tars"),
        ("a-{000..003}.tar", "there are no training images at a-{000..003}.tar; name a folder of images, or tars"),
        ("http://a/b.tar", "is an address or a command, and training images are read from files"),
        ("pipe:cat b.tar", "is an address or a command"),
    ):
        assert sentence in refusal(capsys, "attribute", "a red mug", "--training-images", place)
    monkeypatch.setenv("CARV_CACHE", "file/x")
    assert "set CARV_CACHE" in refusal(capsys, "attribute", "a red mug")


@pytest.mark.parametrize(
    "words", [["generate", "a red mug"], ["variance", "carv-tiny", "--prompt", "a red mug"], ["distill", "carv-tiny"]]
)
def test_a_folder_that_cannot_be_written_is_refused_before_the_model(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("carv_3d.teachers.load.load_teacher", lambda *_, **__: pytest.fail("work was done"))
    refused = refusal(capsys, *words, "--out", "/proc/x")  # where root may write, and cannot
    assert re.search("cannot write /proc/x: .*; choose another place or change its permissions", refused)


def test_names_and_prompts_of_other_letters_in_the_locale_c(tmp_path: Path) -> None:
    run = tmp_path / "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    run.mkdir()
    text = "system:\n  prompt_processor:\n    prompt: a r\N{LATIN SMALL LETTER E WITH CIRCUMFLEX}d mug\n"
    (run / "config.yaml").write_text(text, encoding="utf-8")
    (run / "metrics.csv").write_text("step,psnr\n3,1\n", encoding="utf-8")
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "carv_3d", "runs", "."]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **plain}, capture_output=True, check=True)
    assert b"a r?d mug  3" in done.stdout
    assert done.stderr == b""


def test_a_working_folder_that_is_gone_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(CarvError, match=r"the working folder was removed .*; change to one that is there: cd ~"):
        settle_environment({})
