"""install.sh, called wrongly or on a machine that is in the way: the true cause in one sentence, nothing removed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from install_checkout import ROOT, Checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a call that failed, install.sh's own sentence."""
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("install.sh: ")
    return line


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--threestudio=/x"], ["-x", "y"], ["--locked", "--hlep"]])
def test_a_dash_word_gives_the_usage_at_once(words: list[str], checkout: Checkout) -> None:
    done = checkout.call(*words)
    asked = words[0] in ("--help", "-h")
    assert done.returncode == (0 if asked else 2)
    shown = done.stdout if asked else done.stderr
    assert shown.startswith("install.sh [--locked] [COMMAND ...]\n")
    assert "CARV_TORCH" in shown
    assert asked or done.stderr.endswith(
        f"install.sh: there is no option {words[-1 if len(words) == 2 and words[0] == '--locked' else 0]} here\n"
    )
    assert not (checkout.folder / ".venv").exists()
    assert checkout.pip_calls() == []


def test_each_wrong_python_has_its_own_sentence(checkout: Checkout) -> None:
    folder = checkout.folder.parent
    for python, variables, cause in (
        ("no-such-python", {}, "there is no such program"),
        (str(folder), {}, "a folder; name the program in it"),
        ("python3", {"FAKE_OLD": "1", "FAKE_VERSION": "3.8"}, "Python 3.8, and carv_3d needs 3.10 or newer"),
        ("python3", {"FAKE_OLD": "1", "FAKE_VERSION": ""}, "does not run as a Python"),
        ("echo", {}, "does not run as a Python"),
        ("-x", {}, "there is no such program"),
    ):
        said = refused(checkout.call(PYTHON=python, **variables))
        assert said.startswith(f"install.sh: PYTHON is {python}, ")
        assert cause in said
    assert "no Python 3.10 or newer was found" in refused(
        checkout.call(FAKE_OLD="1", PATH=str(checkout.bin) + ":/bin:/usr/bin", **blocked(checkout))
    )
    assert not (checkout.folder / ".venv").exists()
    spaced = folder / "a b"
    spaced.mkdir()
    shutil.copy(checkout.bin / "python3", spaced / "python 3")
    assert checkout.call("true", PYTHON=str(spaced / "python 3")).returncode == 0


def test_what_cannot_be_is_said_before_anything_is_made(checkout: Checkout) -> None:
    assert refused(checkout.call(CARV_TORCH="rocm")).endswith("CARV_TORCH is 'rocm', but it must be cpu or cuda")
    script = (checkout.folder / "install.sh").read_text()
    piped = checkout.run("bash", "-c", 'bash <<<"$1"', "bash", script)
    assert refused(piped) == "install.sh: it sets up the folder that it is in, so it is called there: ./install.sh"
    assert len(piped.stderr.splitlines()) == 1
    assert not (checkout.folder / ".venv").exists()


def blocked(checkout: Checkout) -> dict[str, str]:
    """Every other Python on the path is too old as well."""
    for name in ("python", "python3.10", "python3.11", "python3.12", "python3.13"):
        checkout.program(name, "#!/bin/bash\nexit 1\n")
    return {}


def test_a_path_with_a_space_is_updated_in_place(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    checkout = Checkout(tmp_path / "a b")
    checkout.call()
    (checkout.folder / ".venv" / "of the user").touch()
    with (checkout.folder / "pyproject.toml").open("a") as handle:
        handle.write("# another requirement\n")
    done = checkout.call("true")
    assert (done.returncode, "anew" in done.stderr) == (0, False)
    assert (checkout.folder / ".venv" / "of the user").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_set_up_that_is_stopped_leaves_nothing_that_races_with_the_next(
    number: signal.Signals, checkout: Checkout, tmp_path: Path
) -> None:
    mark = tmp_path / "at work"
    child = subprocess.Popen(
        [str(checkout.folder / "install.sh"), "true"],
        env=checkout.environment(FAKE_HANGS=str(mark)),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: [signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGHUP)],
    )
    while not mark.exists() or not mark.read_text().strip():
        time.sleep(0.01)
    started = [int(word) for word in mark.read_text().split()]  # of pip, and what pip itself has started
    child.send_signal(number)
    if number == signal.SIGKILL:
        child.wait()
        again = subprocess.Popen(
            [str(checkout.folder / "install.sh"), "true"], env=checkout.environment(), stderr=subprocess.PIPE, text=True
        )
        assert again.stderr is not None
        assert again.stderr.readline() == "Another set-up is at work here: waiting for it ...\n"
        for process in started:
            os.kill(process, signal.SIGKILL)
        said = again.stderr.read()
        assert again.wait() == 0
    else:
        _, stopped = child.communicate(timeout=10)
        assert child.returncode == 128 + number
        assert stopped.endswith("install.sh: the set-up was stopped; the next call makes it anew\n")
        end = time.monotonic() + 5  # a signal takes a moment on a busy machine; left alone they last 30 s
        while any(alive(process) for process in started):
            assert time.monotonic() < end
            time.sleep(0.01)
        done = checkout.call("true")
        said = done.stderr
        assert done.returncode == 0
    assert "making it anew" in said


def alive(process: int) -> bool:
    """And no zombie, which waits for its parent alone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("kind", ["link", "other", "file"])
def test_what_it_has_not_made_is_kept(kind: str, checkout: Checkout, tmp_path: Path) -> None:
    venv, other = checkout.folder / ".venv", tmp_path / "other"
    (other / "bin").mkdir(parents=True)
    (other / "bin" / "python").touch()
    if kind == "link":
        venv.symlink_to(other)
        cause = f"is a link to {other}; remove the link"
    else:
        other.rename(venv) if kind == "other" else venv.touch()
        cause = "was not made by this script; move or remove it"
    assert cause in refused(checkout.call("true"))
    assert (venv.is_symlink(), venv.is_file(), (venv / "bin" / "python").exists()) == (
        kind == "link",
        kind == "file",
        kind != "file",
    )


def test_an_environment_that_was_cut_short_behind_a_link_is_kept(checkout: Checkout, tmp_path: Path) -> None:
    assert checkout.call(FAKE_FAIL="1").returncode == 1
    venv = checkout.folder / ".venv"
    venv.rename(tmp_path / "moved")
    venv.symlink_to(tmp_path / "moved")
    assert "is a link" in refused(checkout.call("true"))
    assert (tmp_path / "moved" / ".carv-making").exists()


def test_it_is_called_through_links_and_by_sh(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "first").symlink_to("../second")
    (tmp_path / "second").symlink_to(checkout.folder / "install.sh")
    for words in (
        [str(tmp_path / "links" / "first")],
        ["sh", str(checkout.folder / "install.sh")],
        ["sh", str(tmp_path / "second")],
    ):
        done = checkout.run(*words, "sh", "-c", "echo $VIRTUAL_ENV")
        assert (done.returncode, done.stdout) == (0, f"{checkout.folder / '.venv'}\n"), done.stderr


@pytest.mark.skipif(shutil.which("dash") is None, reason="needs another shell than bash")
def test_a_shell_that_is_not_bash_hands_over(checkout: Checkout) -> None:
    assert checkout.run("dash", str(checkout.folder / "install.sh"), "true").returncode == 0


def test_a_checkout_that_cannot_be_written_is_one_sentence(checkout: Checkout) -> None:
    """Root may write anywhere, so mkdir says it."""
    checkout.program("mkdir", '#!/bin/bash\necho "mkdir: cannot create directory: Read-only file system" >&2\nexit 1\n')
    done = checkout.call("true")
    assert refused(done) == (
        f"install.sh: {checkout.folder / '.venv'} cannot be written: Read-only file system; mend that and run it again"
    )
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full: "),
        ("ensurepip is not available", "lacks venv (on Debian and Ubuntu: apt install python3-venv)"),
        ("Error: something else", "could not make a virtual environment"),
    ],
)
def test_the_true_cause_of_a_failure_is_given(output: str, cause: str, checkout: Checkout) -> None:
    done = checkout.call("true", FAKE_NO_VENV=output)
    said = refused(done)
    assert cause in said
    assert ("apt install" in said) == ("ensurepip" in output)


def test_the_lock_file_names_versions_alone_and_is_installed_exactly(checkout: Checkout) -> None:
    lock = checkout.folder / "requirements.lock"
    assert "there is no" in refused(checkout.call("--locked", "true"))
    checkout.call()
    checkout.pip_calls()
    assert checkout.call("--lock").returncode == 0
    assert lock.read_text().splitlines() == [
        "# tried with Python 3.11.2 on Linux x86_64",
        "torch==2.13.0",
        "numpy==2.4.6",
    ]
    (listed,) = checkout.pip_calls()
    assert "--exclude-editable" in listed
    done = checkout.call("--locked", "echo", "-n", "ran", CARV_TORCH="cpu")
    assert (done.returncode, done.stdout, "anew" in done.stderr) == (0, "ran", False)  # in place
    calls = checkout.pip_calls()
    assert ["torch==2.13.0" in call for call in calls] == [True, False, False]
    assert calls[1].endswith(f"install -r {lock}")
    assert calls[2].endswith(f"install --no-deps -e {checkout.folder}")
    assert checkout.call("--locked", "true").stderr == ""
    assert checkout.call("true").stderr == ""  # exact versions are within the ranges
    lock.write_text(lock.read_text().replace("2.4.6", "2.4.7"))
    assert "Setting up" in checkout.call("--locked", "true", FAKE_NO_TORCH="0").stderr
    assert len(checkout.pip_calls()) == 2


def test_the_shipped_lock_file_has_no_host_and_no_path_and_all_that_is_required() -> None:
    head, *lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert head.startswith("# tried with Python 3.")
    versions = dict(line.split("==") for line in lines)
    assert len(versions) == len(lines)
    assert not any(mark in version for version in versions.values() for mark in "+/@ ")
    names = {name.lower().replace("_", "-") for name in versions}
    assert {"torch", "numpy", "diffusers", "transformers", "ray", "accelerate", "pytest", "ruff", "mypy"} <= names
    assert not any(name.startswith(("nvidia-", "carv")) for name in names)
