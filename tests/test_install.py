"""install.sh, with a stand-in for Python that records its calls: once made, kept; cut short, made anew."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from install_checkout import ROOT, Checkout

HOST_PYTHON = """#!/bin/bash
# Stands in for the Python of threestudio's environment.
echo "$*" >>"$FAKE_LOG"
case "$*" in
  *"import sys"*) [ -z "${FAKE_REFUSES:-}" ] || { echo "$FAKE_REFUSES" >&2; exit 1; } ;;
  *"-m pip"*) exit ${FAKE_PIP:-0} ;;
esac
"""


class Host:
    """A threestudio checkout next to carv_3d's, and the Python of its environment."""

    def __init__(self, checkout: Checkout) -> None:
        checkout.program("python", HOST_PYTHON)
        self.carv, self.root = checkout, checkout.folder.parent / "three studio"
        for folder in ("threestudio", "custom"):
            (self.root / folder).mkdir(parents=True)
        for file in ("launch.py", "threestudio/__init__.py"):
            (self.root / file).touch()
        self.link = self.root / "custom" / "threestudio-carv"
        (checkout.folder / "custom" / "threestudio-carv").mkdir(parents=True)

    def install(self, path: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.carv.call("--threestudio", str(self.root) if path is None else path, **variables)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def host(checkout: Checkout) -> Host:
    return Host(checkout)


def test_the_first_call_sets_up_and_the_second_does_not(checkout: Checkout) -> None:
    first = checkout.call()
    assert first.returncode == 0, first.stderr
    assert "carv generate" in first.stderr  # what to do next
    assert any(f"-e {checkout.folder}[all,dev]" in call for call in checkout.pip_calls())
    second = checkout.call("true")
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert checkout.pip_calls() == []


def test_the_command_runs_where_it_was_called_and_its_status_is_kept(checkout: Checkout) -> None:
    script = 'pwd; echo "$VIRTUAL_ENV"; command -v python; printf "<%s>" "$@"; exit 7'
    done = checkout.call("bash", "-c", script, "x", "a b", "")
    venv = checkout.folder / ".venv"
    assert done.returncode == 7
    assert done.stdout.split("\n") == [
        str(checkout.folder.parent),
        str(venv),
        f"{venv}/bin/python",
        "<a b><>",
    ]


def test_a_set_up_that_was_cut_short_is_made_anew(checkout: Checkout) -> None:
    assert checkout.call(FAKE_FAIL="1").returncode == 1
    checkout.pip_calls()
    (checkout.folder / ".venv" / "half").write_text("unpacked")
    done = checkout.call("true")
    assert done.returncode == 0
    assert "making it anew" in done.stderr
    assert not (checkout.folder / ".venv" / "half").exists()
    assert checkout.pip_calls() != []
    assert checkout.call("true").stderr == ""


def test_a_failure_names_its_cause_and_the_command_is_not_run(checkout: Checkout) -> None:
    done = checkout.call("touch", "ran", FAKE_FAIL="1")
    assert done.returncode == 1
    assert "disk on fire" in done.stderr
    assert "run it again" in done.stderr
    assert not (checkout.folder.parent / "ran").exists()


def test_changed_requirements_are_installed_into_the_same_environment(checkout: Checkout) -> None:
    checkout.call()
    checkout.pip_calls()
    (checkout.folder / ".venv" / "mine").write_text("kept")
    with (checkout.folder / "pyproject.toml").open("a") as handle:
        handle.write("# another requirement\n")
    assert checkout.call("true").returncode == 0
    assert len(checkout.pip_calls()) > 0
    assert (checkout.folder / ".venv" / "mine").exists()
    assert checkout.call("true").stderr == ""


def test_a_moved_checkout_is_set_up_anew(checkout: Checkout) -> None:
    checkout.call()
    checkout.pip_calls()
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("moved"))
    done = checkout.call("true")
    assert done.returncode == 0
    assert "making it anew" in done.stderr
    assert checkout.pip_calls() != []


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ["--no-index"]),
        ({"FAKE_NO_WHEEL": "1"}, ["--no-index", "download.pytorch.org/whl/cpu"]),
        (
            {"FAKE_NO_WHEEL": "1", "FAKE_NO_CPU_INDEX": "1"},
            ["--no-index", "download.pytorch.org/whl/cpu", "install torch>=2.0"],
        ),
        ({"CARV_TORCH": "cuda"}, []),
    ],
)
@pytest.mark.skipif(os.uname().sysname != "Linux", reason="only Linux has a CPU build apart from the default")
def test_without_a_gpu_the_cpu_build_is_taken_from_where_it_is(
    variables: dict[str, str], expected: list[str], checkout: Checkout
) -> None:
    assert checkout.call("true", **variables).returncode == 0
    calls = checkout.pip_calls()
    assert len(calls) == len(expected) + 1
    for call, words in zip(calls, expected):
        assert words in call
        assert "torch>=2.0" in call


def test_with_a_gpu_the_default_build_comes_with_the_package(checkout: Checkout) -> None:
    checkout.program("nvidia-smi", "#!/bin/bash\nexit 0\n")
    assert checkout.call("true").returncode == 0
    assert len(checkout.pip_calls()) == 1
    other = checkout.call("true", CARV_TORCH="cpu")
    assert other.returncode == 0  # already set up


def test_the_extension_is_linked_and_the_package_alone_is_installed(host: Host) -> None:
    done = host.install()
    assert done.returncode == 0, done.stderr
    assert host.link.resolve() == host.carv.folder / "custom" / "threestudio-carv"
    calls = host.carv.pip_calls()
    assert [call for call in calls if "-m pip" in call] == [
        f"-m pip --disable-pip-version-check install --no-deps -e {host.carv.folder}"
    ]
    assert any(f"doctor --threestudio {host.root}" in call for call in calls)
    assert not (host.carv.folder / ".venv").exists()
    assert sorted(p.name for p in host.root.iterdir()) == ["custom", "launch.py", "threestudio"]
    assert host.install().returncode == 0  # again: the link is there already


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda host: (host.root / "launch.py").unlink(), "is no threestudio checkout"),
        (lambda host: (host.root / "custom").rmdir(), "older than extensions"),
        (lambda host: host.link.mkdir(), "is no link of this script's"),
        (lambda host: host.link.symlink_to(host.root), "leads elsewhere"),
    ],
)
def test_a_checkout_that_cannot_take_it_is_one_sentence(damage: Any, said: str, host: Host) -> None:
    damage(host)
    done = host.install()
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not any("-m pip" in call for call in host.carv.pip_calls())


def test_an_environment_that_cannot_take_it_is_one_sentence(host: Host) -> None:
    for variables, said in (
        ({"FAKE_REFUSES": "its torch is 1.13.1, and carv_3d needs 2.0 or newer"}, "its torch is 1.13.1"),
        ({"PYTHON": "no-such-python"}, "there is no no-such-python"),
        ({"FAKE_PIP": "1"}, "could not be installed"),
    ):
        done = host.install(**variables)
        assert done.returncode == 1
        assert said in done.stderr
        assert not host.link.exists()
    for path in ("", str(host.root / "nowhere")):
        assert host.install(path).returncode == 1


def test_no_script_names_a_registry_of_its_own() -> None:
    for name in ("install.sh", "pyproject.toml", ".ci/run"):
        text = (ROOT / name).read_text()
        hosts = {line.split("://")[1].split("/")[0].strip("\"'") for line in text.split() if "://" in line}
        assert hosts <= {"download.pytorch.org", "arxiv.org"}
