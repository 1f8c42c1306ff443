"""The command line: one sentence and status 2 for every slip, and quick where nothing heavy is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import loaded_by, refusal

from carv_3d.cli import doctor
from carv_3d.cli import main as cli
from carv_3d.errors import install_command


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["genrate", "x"], "did you mean carv generate?"),
        (["--color"], "unknown option '--color'"),
        (["generate"], "a prompt is missing"),
        (["generate", "   "], "the prompt is empty"),
        (["generate", ""], "the prompt is empty"),
        (["generate", "a", "red", "mug"], "3 prompts were given"),
        (["generate", "a red mug", "--sed", "3"], "did you mean --seed?"),
        (["generate", "a red mug", "--seed", "x"], "--seed"),
        (["generate", "a red mug", "--seed", "-1"], "seed is -1"),
        (["generate", "a red mug", "--config", "nothing.yaml"], "there is no config file nothing.yaml"),
        (["generate", "a red mug", "--config", "."], ". is a folder, and a file is due"),
        (["generate", "a red mug", "system.guidance.num_draws=0"], "num_draws is 0"),
        (
            ["generate", "a red mug", "system.guidance.num_drws=1"],
            "did you mean 'system.guidance.num_draws'?",
        ),
        (["generate", "a red mug", "num_drws=1"], "did you mean 'system.guidance.num_draws'?"),
        (["generate", "a red mug", "resolution=9"], "may be system.geometry.resolution or system.exporter.resolution"),
        (["generate", "x=y mug"], "a prompt that holds = goes behind --"),
        (["generate", "a red mug", "x=y mug"], "unknown option 'x'"),
        (["generate", "--", "x=y mug"], "carv-tiny does not know"),
        (["generate", "system.prompt_processor.prompt=a red zeppelin"], "zeppelin"),
        (["generate", "prompt=a red zeppelin"], "zeppelin"),
        (["generate", "a red mug", "--dry-run", "system.guidance.num_draws=0"], "num_draws is 0"),
        (["generate", "../../x"], "carv-tiny does not know"),
        (["generate", "<script>alert(1)</script>"], "carv-tiny does not know"),
        (["generate", "a red zeppelin"], "zeppelin"),
        (["generate", "a red mug and a blue car"], "several objects"),
        (["generate", "a red mug", "--resume"], "there is no run to resume"),
        (["generate", "a red mug", "--resume", "--out", "/nonexistent/x"], "there is no run to resume"),
        (["distill", ""], "the model is missing"),
        (["doctor", "--fix"], "unknown option --fix"),
    ],
)
def test_a_slip_is_one_sentence(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in refusal(capsys, *arguments)


def teacher_option(folder: Path) -> str:
    return f"system.guidance.pretrained_model_name_or_path={folder}"


LONG = "n" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "a red mug", "--out", LONG],
        ["generate", "a red mug", "--out", LONG, "--dry-run"],
        ["generate", "--resume", "--out", LONG],
        ["generate", "a red mug", teacher_option(Path(LONG))],
        ["generate", "a red mug", teacher_option(Path("~nobody-of-this-name/x"))],
        ["generate", "a red mug", "--dry-run", teacher_option(Path("~nobody-of-this-name/x"))],
        ["generate", "a red mug", "--config", LONG],
        ["distill", LONG],
        ["compare", f"a={LONG}"],
        ["variance", LONG, "--prompt", "a red mug"],
        ["doctor", "--threestudio", LONG],
    ],
    ids=lambda a: " ".join(w[:40] for w in a),
)
def test_a_path_that_cannot_be_is_one_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, *arguments)
    assert LONG[:30] in said or "~nobody-of-this-name/x" in said


def test_what_is_no_trouble_with_a_path_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(words: list[str]) -> int:
        raise OSError("of a library's own making")

    monkeypatch.setattr(doctor, "main", broken)
    with pytest.raises(OSError, match="own making"):
        cli.main(["doctor"])


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model.safetensors", "model_index.json", "vae"])
def test_a_damaged_model_folder_is_one_sentence(
    part: str, sd_folder: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path_factory.mktemp("damaged") / "model"
    shutil.copytree(sd_folder, folder)
    victim = folder / part
    if victim.is_dir():
        shutil.rmtree(victim)
    else:
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    for extra in ([], ["--dry-run"]):
        message = refusal(capsys, "generate", "a red mug", teacher_option(folder), *extra)
        assert str(folder) in message


def test_a_model_that_is_not_there_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # no network, as CI has none
    assert "no such folder" in refusal(capsys, "generate", "a red mug", teacher_option(Path("./nowhere")))
    message = refusal(capsys, "generate", "a red mug", teacher_option(Path("someone/some-model")))
    assert "someone/some-model" in message
    assert "offline" in message


def test_a_dry_run_says_that_a_model_of_the_hub_would_be_downloaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # a dry run does not ask the hub
    name = "someone/some-model"
    assert cli.main(["generate", "a red mug", "--dry-run", teacher_option(Path(name))]) == 0
    out = capsys.readouterr().out
    assert f"# model: {name} is not on this machine; a run would download it first" in out
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline mode" in refusal(capsys, "generate", "a red mug", "--dry-run", teacher_option(Path(name)))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    withdrawn = "stabilityai/stable-diffusion-2-1-base"
    assert withdrawn in refusal(capsys, "generate", "a red mug", "--dry-run", teacher_option(Path(withdrawn)))


def test_a_dry_run_names_a_folder_that_cannot_be_written(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path_factory.mktemp("other") / "file"
    file.write_text("")
    said = refusal(capsys, "generate", "a red mug", "--dry-run", "--out", str(file / "run"))
    assert f"cannot write {file / 'run'}" in said


def test_a_text_stands_as_it_is_and_home_is_the_home_folder(
    sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["system.prompt_processor.prompt=a red mug", "negative_prompt=a: blue # green", "--out=~/x", "--dry-run"]
    small = [teacher_option(sd_folder), "width=16", "height=16", "max_steps=1", "device=cpu", "num_samples_per_ray=4"]
    assert cli.main(["generate", *words, *small]) == 0
    out = capsys.readouterr().out
    assert "prompt: a red mug\n" in out
    assert "negative_prompt: 'a: blue # green'\n" in out
    assert str(tmp_path / "x") in out


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["help"]):
        assert cli.main(arguments) == 0
        out = capsys.readouterr().out
        assert all(name in out for name in cli.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("carv_3d 0.")
    assert refusal(capsys, "--version", "x") == "carv: carv --version takes nothing more; leave 'x' out"
    assert "leave 'view' out, or write carv view --help" in refusal(capsys, "help", "view")
    for name in cli.COMMANDS:
        assert cli.main([name, "--help"]) == 0
        assert f"carv {name}" in capsys.readouterr().out


def test_help_and_slips_answer_without_the_heavy_imports() -> None:
    code = (
        "import sys; from carv_3d.cli import main as cli; cli.main(['--help']);"
        "[cli.main([name, '--help']) for name in cli.COMMANDS]; cli.main(['distill', 'variance', '--help']);"
        "cli.main(['variance', 'x', '--draws', '0']); cli.main(['compare', 'a', '--seeds', 'x']);"
        "cli.main(['generate', 'x', '--sed']); cli.main(['generate', ' ']);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'diffusers', 'transformers', 'rich', 'numpy')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_diffusers_waits_until_a_model_is_loaded() -> None:
    imports = "import carv_3d.generate.run, carv_3d.generate.request, carv_3d.generate.dry_run"
    assert not loaded_by(imports, "diffusers", "transformers")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_runs_out_anywhere_is_one_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch  # noqa: F401  # which is where such an error comes from

    def no_memory(words: list[str]) -> int:
        raise error

    monkeypatch.setattr("carv_3d.cli.main._dispatch", no_memory)
    assert refusal(capsys, "generate", "mug") == (
        "carv: memory ran out; close other programs, or ask for something smaller"
    )


def test_an_interrupt_ends_without_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "main", interrupted)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "carv: interrupted\n"


def finding(name: str) -> doctor.Finding:
    return next(f for f in doctor.examine() if f.name == name)


def test_doctor_shows_versions_and_fixes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    status = cli.main(["doctor"])
    out = capsys.readouterr().out
    for name in (
        "python",
        "torch",
        "CUDA",
        "diffusers",
        "transformers",
        "nerfacc",
        "carv-tiny",
        "threestudio",
    ):
        assert f" {name} " in out
    assert torch.__version__ in out
    needed = [f for f in doctor.examine() if f.needed and not f.found]
    assert status == (1 if needed else 0)
    assert all(f.fix for f in doctor.examine() if not f.found)


def test_doctor_fails_only_where_the_main_job_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    good = doctor.Finding("torch", True, "2.0")
    optional = doctor.Finding("tiny-cuda-nn", False, "not installed", "pip install it")
    missing = doctor.Finding("nerfacc", False, "not installed", "pip install nerfacc", needed=True)
    monkeypatch.setattr(doctor, "examine", lambda: [good, optional])
    assert doctor.report(lines.append) == 0
    assert "Ready" in lines[-1]
    monkeypatch.setattr(doctor, "examine", lambda: [good, optional, missing])
    assert doctor.report(lines.append) == 1
    assert "Not ready: nerfacc" in lines[-1]
    assert any("-> pip install nerfacc" in line for line in lines)


def test_doctor_names_the_fix_for_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "nerfacc" else real(name, *rest)
    )
    nerfacc = finding("nerfacc")
    assert (nerfacc.found, nerfacc.needed) == (False, True)
    assert "pip install 'nerfacc" in nerfacc.fix


def test_doctor_names_what_further_commands_need(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "viser" else real(name, *rest))
    view, compare = finding("view"), finding("compare")
    assert (view.found, view.needed, view.fix) == (False, False, install_command("view"))
    assert "viser" in view.detail
    assert compare.found
    assert all(f"{name} {importlib.metadata.version(name)}" in compare.detail for name in ("ray", "torchmetrics"))
    declared = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    for name, modules, _ in doctor.EXTRAS:
        listed = declared.split(f"\n{name} = [")[1].split("]\n")[0]
        assert all(f'"{module}>=' in listed for module in modules)


def test_doctor_lists_the_models_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cache = finding("model cache")
    assert not cache.found
    assert "pretrained_model_name_or_path" in cache.fix
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    assert "owner/name" in finding("model cache").detail
