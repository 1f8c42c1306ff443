"""`carv doctor --threestudio`: a checkout is ready, or what is missing is named with its fix."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from carv_3d.cli import doctor, doctor_threestudio
from carv_3d.cli import main as cli

EXTENSION = Path(__file__).parents[2] / "custom" / "threestudio-carv"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The least that is taken for a threestudio checkout."""
    root = tmp_path / "three studio"
    (root / "threestudio").mkdir(parents=True)
    (root / "custom").mkdir()
    (root / "launch.py").write_text("")
    (root / "threestudio" / "__init__.py").write_text('__modules__ = {}\n__version__ = "0.2.3"\n')
    return root


@pytest.fixture
def _all_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    everything = {*doctor_threestudio.HOSTS, "carv_3d"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name in everything else find(name))


def results(checkout: Path) -> dict[str, doctor.Finding]:
    return {result.name: result for result in doctor_threestudio.examine(str(checkout))}


@pytest.mark.usefixtures("_all_installed")
def test_a_linked_checkout_is_ready(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / "custom" / "threestudio-carv").symlink_to(EXTENSION)
    assert cli.main(["doctor", "--threestudio", str(checkout)]) == 0
    out = capsys.readouterr().out
    assert f"threestudio 0.2.3 in {checkout}" in out
    assert "Ready. Try: python launch.py --config custom/threestudio-carv/configs/carv-dreamfusion-tiny.yaml" in out
    assert (EXTENSION / "configs" / "carv-dreamfusion-tiny.yaml").is_file()


@pytest.mark.usefixtures("_all_installed")
def test_a_missing_or_dangling_link_is_named_with_the_command(checkout: Path) -> None:
    assert not results(checkout)["extension"].found
    assert f"./install.sh --threestudio {checkout}" in results(checkout)["extension"].fix
    (checkout / "custom" / "threestudio-carv").symlink_to(checkout / "gone")
    assert "where no extension is" in results(checkout)["extension"].detail
    assert cli.main(["doctor", "--threestudio", str(checkout)]) == 1


def test_packages_of_threestudio_that_are_missing_are_named(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tinycudann" else find(name))
    packages = results(checkout)["threestudio's packages"]
    assert packages.needed
    assert not packages.found
    assert "tinycudann" in packages.detail
    assert sys.prefix in packages.detail


def test_an_old_torch_is_named(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_threestudio, "installed", lambda module: "1.13.1+cu117")
    torch = results(checkout)["torch"]
    assert (torch.found, torch.needed) == (False, True)
    assert "1.13.1+cu117, older than 2.0" in torch.detail


@pytest.mark.parametrize(
    ("missing", "said"),
    [("launch.py", "is no threestudio checkout"), ("custom", "older than extensions"), ("", "there is no folder")],
)
def test_what_is_no_checkout_is_one_sentence(
    missing: str, said: str, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkout / missing
    if not missing:
        checkout = checkout / "nowhere"
    elif path.is_dir():
        path.rmdir()
    else:
        path.unlink()
    assert cli.main(["doctor", "--threestudio", str(checkout)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("_all_installed")
def test_the_environment_variable_is_shown_in_the_usual_report(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examined = doctor._threestudio
    monkeypatch.delenv("CARV_THREESTUDIO", raising=False)
    assert "names no checkout" in examined().detail
    monkeypatch.setenv("CARV_THREESTUDIO", str(checkout))
    assert "is not ready (extension)" in examined().detail
    (checkout / "custom" / "threestudio-carv").symlink_to(EXTENSION)
    assert examined().found
    monkeypatch.setenv("CARV_THREESTUDIO", str(checkout / "custom"))
    assert "is no threestudio checkout" in examined().detail


def test_a_package_that_is_there_and_does_not_load_is_named(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = importlib.import_module

    def broken(name: str, package: str | None = None) -> object:
        if name == "diffusers":
            raise RuntimeError("operator torchvision::nms does not exist\nmore")
        return load(name, package)

    monkeypatch.setattr(importlib, "import_module", broken)
    diffusers = results(checkout)["diffusers"]
    assert (diffusers.found, diffusers.needed) == (False, True)
    assert "does not load: operator torchvision::nms does not exist" in diffusers.detail
    assert "more" not in diffusers.detail
    assert results(checkout)["transformers"].found


def test_a_machine_without_a_gpu_has_torch_all_the_same(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert results(checkout)["torch"].found
    assert not results(checkout)["GPU"].found
