"""Which run a request means, and what --resume changes in it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from tiny_host import TINY

from carv_3d.attribution.queries import run_model
from carv_3d.config.request import GenerateRequest
from carv_3d.errors import CarvError
from carv_3d.generate.config import config_to_yaml, load_config, load_run, settled
from carv_3d.generate.request import resolve
from carv_3d.scenes.fields import VoxelGridField
from carv_3d.variance.command import read_source
from carv_3d.variance.request import VarianceRequest

LONG = "trainer.max_steps=5"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def begun(prompt: str, folder: str | None = None, config: Path | None = None, steps: int = 3) -> Path:
    """The folder of a run, as far as its config.yaml."""
    overrides = [*TINY, f"trainer.max_steps={steps}"]
    request = GenerateRequest(
        prompt=prompt, config=config, out=None if folder is None else Path(folder), overrides=tuple(overrides)
    )
    resolved, path = resolve(request)
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(config_to_yaml(settled(resolved, "voxel")))
    return path


@pytest.mark.parametrize("newest", [0, 1])
def test_prompts_whose_folders_are_named_alike_find_their_own(newest: int) -> None:
    prompts = ["红色杯子", "绿色的树", "A red mug!", "a red mug"]
    folders = [begun(prompt) for prompt in prompts]
    assert [f.name for f in folders] == ["prompt-0", "prompt-0-2", "a-red-mug-0", "a-red-mug-0-2"]
    for i, folder in enumerate(folders):
        os.utime(folder / "config.yaml", (100 + (i + newest) % 2, 100 + (i + newest) % 2))
    for prompt, folder in zip(prompts, folders):
        config, found_folder = resolve(GenerateRequest(prompt=prompt, resume=True))
        assert found_folder == folder
        assert config.prompt == prompt
    with pytest.raises(CarvError, match="there is no run to resume in outputs/prompt-0; begin one without --resume"):
        resolve(GenerateRequest(prompt="黄色的船", resume=True))


def test_a_prompt_is_the_same_in_both_forms_of_unicode() -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    file = begun(apart) / "config.yaml"
    text = file.read_text()
    assert composed in text
    file.write_text(text.replace(composed, apart))  # as a run of the last version has it
    config, folder = resolve(GenerateRequest(prompt=composed, resume=True))
    assert (config.prompt, folder) == (composed, file.parent)


def test_more_steps_go_with_the_configuration_that_the_run_was_begun_with() -> None:
    """The default ends of the schedules follow from trainer.max_steps: they stay where the run has them."""
    file = Path("c.yaml")
    file.write_text("system:\n  geometry:\n    resolution: 9\n")
    folder = begun("a red mug", "run", file)
    for config in (file, None):
        new, resumed = resolve(GenerateRequest(config=config, out=folder, resume=True, overrides=[*TINY[1:], LONG]))
        assert resumed == folder
        assert new.trainer.max_steps == 5
        assert list(new.system.guidance.max_step_percent) == [0.98, 0.4, 3]  # type: ignore[arg-type]
        assert new.system.geometry.resolution == 8
        assert new.system.optimizer.args.lr == VoxelGridField.learning_rate  # which the file leaves to the field
    with pytest.raises(CarvError, match=r"system.optimizer.args.lr = 0.06, and --resume cannot change it to 0.5"):
        resolve(GenerateRequest(config=file, out=folder, resume=True, overrides=[*TINY[1:], "lr=0.5"]))
    file.write_text("data:\n  n_test_views: 6\ntrainer:\n  max_steps: 7\n")
    new, _ = resolve(GenerateRequest(config=file, out=folder, resume=True, overrides=TINY[:1] + TINY[1:-4]))
    assert (new.trainer.max_steps, new.data.n_test_views) == (7, 6)


def test_a_run_whose_file_leaves_the_rate_to_the_field_is_resumed() -> None:
    folder = begun("a red mug", "run")
    text = (folder / "config.yaml").read_text()
    assert "lr: 0.06" in text
    (folder / "config.yaml").write_text(text.replace("lr: 0.06", "lr: null"))
    assert resolve(GenerateRequest(out=folder, resume=True, overrides=[LONG]))[0].trainer.max_steps == 5


def test_a_resumed_run_takes_what_may_change_and_refuses_the_rest() -> None:
    folder = begun("a red mug", "run")
    words = ["device=auto", "system.exporter.level=3.5", "data.eval_width=24", "system.guidance.max_batch=2", LONG]
    new, _ = resolve(GenerateRequest(out=folder, resume=True, overrides=words))
    stored = load_config(folder / "config.yaml")
    assert (new.device, new.system.exporter.level, new.data.eval_width) == ("auto", 3.5, 24)
    assert new.system.guidance.max_batch == 2
    assert new.system.guidance.num_draws == stored.system.guidance.num_draws
    for word, key in (
        ("data.width=24", "data.width = 16"),
        ("system.guidance.max_step_percent=[0.98,0.4,5]", "system.guidance.max_step_percent = "),
        ("system.loss.lambda_tv=1", "system.loss.lambda_tv = 0"),
        ("seed=9", "seed = 0"),
        ("system.prompt_processor.prompt=a green tree", "system.prompt_processor.prompt = 'a red mug'"),
    ):
        with pytest.raises(CarvError, match="--resume cannot change it") as caught:
            resolve(GenerateRequest(out=folder, resume=True, overrides=[word]))
        assert key in str(caught.value)
    with pytest.raises(CarvError, match="seed = 0"):
        resolve(GenerateRequest(out=folder, resume=True, seed=9))
    other = Path("other.yaml")
    other.write_text("system:\n  loss:\n    lambda_recon: 7\n")
    with pytest.raises(CarvError, match="lambda_recon"):
        resolve(GenerateRequest(config=other, out=folder, resume=True, overrides=TINY))


@pytest.mark.parametrize(
    ("kept", "sentence"),
    [
        (0, "run/config.yaml is empty, so it is not what carv generate wrote; restore it, or name another run"),
        (0.1, "run/config.yaml has nothing under system, so it is not what carv generate wrote"),
        (0.9, "run/config.yaml has nothing under trainer, so it is not what carv generate wrote"),
    ],
)
def test_a_configuration_that_has_lost_its_end_is_never_read_as_the_defaults(kept: float, sentence: str) -> None:
    folder = begun("a red mug", "run")
    lines = (folder / "config.yaml").read_text().splitlines(keepends=True)
    (folder / "config.yaml").write_text("".join(lines[: int(kept * len(lines))]))
    for words in ([], [LONG]):
        with pytest.raises(CarvError, match=sentence):
            resolve(GenerateRequest(out=folder, resume=True, overrides=words))
    with pytest.raises(CarvError, match=sentence):
        read_source(VarianceRequest(source=folder))
    with pytest.raises(CarvError, match=f"no run of carv generate .of its config.yaml: {sentence}"):
        run_model(folder)


def test_a_value_that_cannot_be_is_named_with_the_file_it_is_in() -> None:
    path = begun("a red mug", "run") / "config.yaml"
    whole = path.read_text()
    path.write_text(re.sub("n_test_views: .*", "n_test_views: many", whole))
    for words in ([], [LONG]):
        with pytest.raises(CarvError, match=r"^run/config.yaml: data.n_test_views is 'many'.*; restore it, or name an"):
            load_run(path.parent, words)
    assert load_run(path.parent, ["data.n_test_views=4"]).data.n_test_views == 4
    path.write_text(whole)
    with pytest.raises(CarvError, match=r"^data.n_test_views is 'few'"):
        load_run(path.parent, ["data.n_test_views=few"])


def test_a_run_that_is_resumed_by_its_prompt_and_has_lost_its_configuration_is_named() -> None:
    folder = begun("a red mug")
    (folder / "config.yaml").write_text("")
    with pytest.raises(CarvError, match=r"outputs/a-red-mug-0/config.yaml is empty"):
        resolve(GenerateRequest(prompt="a red mug", resume=True))


@pytest.mark.parametrize("left", ["checkpoint", "metrics.csv"])
def test_a_run_without_its_configuration_is_no_missing_run(left: str) -> None:
    folder = begun("a red mug", "run")
    (folder / "config.yaml").unlink()
    with pytest.raises(CarvError, match="there is no run to resume in run; begin one without --resume"):
        resolve(GenerateRequest(out=folder, resume=True))
    (folder / left).mkdir()
    with pytest.raises(CarvError, match=f"run has a {left} but no config.yaml, .* restore it, or begin a new run"):
        resolve(GenerateRequest(out=folder, resume=True))


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_a_text_that_is_no_prompt_is_named_as_it_is_given(name: str) -> None:
    named = {"prompt": "the prompt"}.get(name, name)
    for text, sentence in (("a" * 2001, "is longer than 2000 characters"), ("a\x07", "holds control characters")):
        with pytest.raises(CarvError, match=f"^{named} {sentence}|: {named} {sentence}"):
            load_config(overrides=[f"system.prompt_processor.{name}={text}"])
