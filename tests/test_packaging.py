"""What the wheel holds, what the library needs, and the sentence for a package that is not installed."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carv_3d import errors
from carv_3d.cli import doctor
from carv_3d.cli.main import main as cli
from carv_3d.errors import CarvError, install_command, packages, require
from carv_3d.hosts.checkout import how_to_link
from carv_3d.version import __version__

ROOT = Path(__file__).parents[1]
BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""
MODULES = {"scikit-image": "skimage", "imageio-ffmpeg": "imageio_ffmpeg", "pillow": "PIL"} | dict.fromkeys(
    ("carv-3d", "torch"), ""
)  # these are always there


def extras() -> dict[str, list[str]]:
    """Extra -> the modules that it names itself, of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[project.")[0]
    packages = {}
    for name, listed in re.findall(r"^(\w+) = \[(.*?)\]$", section, re.M | re.S):
        names = [re.match(r"[\w-]+", item)[0] for item in re.findall(r'"([^"]+)"', listed)]
        packages[name] = [MODULES.get(n, n) for n in names]
    return packages


def run(code: str, blocked: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    whole = BLOCKER.format(blocked=set(blocked) - {""}) + code
    return subprocess.run([sys.executable, "-c", whole], env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_all_that_is_needed_at_run_time(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    loose = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "install.sh")
    for name in (*loose, "setup.py", "requirements.lock", "mkdocs.yml", "CITATION.cff", "SECURITY.md"):
        shutil.copy(ROOT / name, source)
    for folder in ("carv_3d", "custom", "tests", "benchmarks", "docs", "examples", ".ci", ".github"):
        (source / folder).mkdir()
        for path in (ROOT / folder).rglob("*"):  # links: the weights are not copied twice
            to = source / path.relative_to(ROOT)
            if "__pycache__" not in path.parts:
                to.mkdir(exist_ok=True) if path.is_dir() else os.link(path, to)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("carv_3d-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [archive.read(n).decode() for n in names if n.endswith("/METADATA")]
    listed = set((source / "carv_3d.egg-info" / "SOURCES.txt").read_text().splitlines())  # what an sdist holds
    everything = {str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()}
    assert {p for p in everything if not p.startswith(("build/", "carv_3d.egg-info/"))} - listed == set()
    shared = "carv_3d-*.data/data/share/carv_3d/threestudio-carv"
    for path in (source / "custom" / "threestudio-carv").rglob("*.*"):
        assert fnmatch.filter(names, f"{shared}/{path.relative_to(source / 'custom' / 'threestudio-carv')}"), path
    files = [p for p in (source / "carv_3d").rglob("*") if p.is_file()]
    assert {str(p.relative_to(source)) for p in files} - set(names) == set()
    weights = ("tiny/weights/", "tiny/weights_128/", "tiny/classifier.safetensors")
    for part in ("configs/carv-tiny.yaml", "py.typed", "assets/", *weights):
        assert any(name.startswith(f"carv_3d/{part}") for name in names), part
    assert "**Distil diffusion models with less noise per second.**" in metadata
    assert "[How it works]" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\nHow it works · Guides" in metadata  # a link into the checkout is its text
    assert not re.findall(r"\]\((?!https?:)[^)]*\)", metadata)
    assert any(name.endswith("LICENSE") for name in names)
    needed = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata, re.M)
    assert sorted(needed) == ["numpy", "torch"]
    assert set(re.findall(r"^Provides-Extra: (\w+)$", metadata, re.M)) == set(extras())


def test_the_library_needs_torch_and_numpy_alone() -> None:
    blocked = [module for listed in extras().values() for module in listed] + ["yaml", "huggingface_hub"]
    code = """
import torch, carv_3d
for name in carv_3d.__all__:
    try:
        getattr(carv_3d, name)
    except carv_3d.CarvError as error:
        print(name, error)
schedule = carv_3d.NoiseSchedule.scaled_linear()
latents = torch.zeros(2, 4, 8, 8, requires_grad=True)
carv_3d.sds_loss(latents, lambda z, t: z, schedule, num_draws=2).backward()
try:
    carv_3d.StableDiffusionTeacher.load("carv-tiny")
except carv_3d.CarvError as error:
    print(error)
"""
    done = run(code, blocked)
    assert done.returncode == 0, done.stderr
    configuration, teacher = done.stdout.splitlines()
    assert configuration.startswith("load_config ")
    assert configuration.endswith(f"is not installed: {install_command('generate')}")
    assert teacher.endswith(f"is not installed: {install_command('teachers')}")


def test_a_missing_extra_is_one_sentence_with_the_command(tmp_path: Path) -> None:
    methods = ["--method", "a", "--method", "b", "--steps", "1"]
    commands = {
        "generate": ["generate", "a red mug"],
        "variance": ["variance", "carv-tiny", "--prompt", "a red mug"],
        "distill": ["distill", "carv-tiny"],
        "attribute": ["attribute", "a red mug"],
        "compare": ["compare", "--prompt", "a red mug", *methods],
    }
    code = f"import os; os.chdir({str(tmp_path)!r})\nfrom carv_3d.cli.main import main\n"
    code += f"assert [main(words) for words in {list(commands.values())!r}] == [2] * {len(commands)}"
    done = run(code, [module for listed in extras().values() for module in listed])
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("carv: ")]
    for command, line in zip(commands, lines, strict=True):
        extra = "generate" if command == "variance" else command
        assert line.endswith(f"is not installed: {install_command(extra)}")
    assert list(tmp_path.iterdir()) == []


class Installed:
    """A distribution with what pip wrote about where it came from."""

    def __init__(self, source: str | None) -> None:
        self.source = source

    def read_text(self, name: str) -> str | None:
        return self.source if name == "direct_url.json" else None


@pytest.mark.parametrize(
    ("source", "command"),
    [
        (None, "pip install 'carv-3d[compare]'"),
        ('{"url": "file:///a/carv_3d.whl"}', "pip install 'carv-3d[compare] @ file:///a/carv_3d.whl'"),
        (
            '{"url": "https://h/carv_3d.git", "vcs_info": {"vcs": "git", "commit_id": "1f2e"}}',
            "pip install 'carv-3d[compare] @ git+https://h/carv_3d.git@1f2e'",
        ),
    ],
)
def test_the_command_fits_how_the_package_was_installed(
    source: str | None, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert install_command("compare") == f"pip install -e '{ROOT}[compare]'"  # a checkout
    assert doctor.set_up() == f"run ./install.sh in {ROOT}"
    assert how_to_link(Path("/t")).endswith("./install.sh --threestudio /t")
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "site-packages" / "carv_3d" / "errors.py"))
    monkeypatch.setattr(errors.importlib.metadata, "distribution", lambda name: Installed(source))
    assert install_command("compare") == command
    assert doctor.set_up() == command.replace("compare", "all")
    assert how_to_link(Path("/t")) == f"ln -s '{sys.prefix}/share/carv_3d/threestudio-carv' '/t/custom/'"


def test_only_a_missing_package_is_translated() -> None:
    def missing(name: str) -> Callable[[], Any]:
        def fails() -> None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return fails

    with pytest.raises(CarvError, match=r"nerfacc is not installed: pip install .*\[generate\]"), packages("generate"):
        missing("nerfacc.volrend")()
    for own in ("carv_3d.nothing", "json.nothing"):
        with pytest.raises(ModuleNotFoundError, match=own), packages("generate"):
            missing(own)()
    with pytest.raises(CarvError, match=r"a test needs no_such_name, which is not installed: pip install"):
        require("no_such_name.part", "dev", "a test")
    assert require("json", "dev", "a test").loads("1") == 1
    assert callable(cli)


def test_the_version_stands_in_one_place() -> None:
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first = re.search(r"^## \[(.+?)\]", log, re.M)[1]
    assert first == __version__ or (first == "Unreleased" and f"To become {__version__}." in log)
    kinds = set(re.findall(r"^### (.*)$", log, re.M))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}  # of Keep a Changelog
    assert 'dynamic = ["version", ' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
