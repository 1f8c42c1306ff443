"""carv-tiny is recognized by its words, under whatever name; of other models nothing is known."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from carv_3d.compare.scored_run import Length, ScoredRun
from carv_3d.distill.prompts import TinyCaptions, read_prompts
from carv_3d.errors import CarvError
from carv_3d.evaluation.truth import TrueShape
from carv_3d.generate.config import load_config
from carv_3d.generate.trainer import check_prompt
from carv_3d.runs.progress import Display
from carv_3d.teachers.families import BUILT_IN
from carv_3d.tiny.knowledge import Knowledge, TinyKnowledge, model_knowledge
from carv_3d.tiny.vocabulary import LONGEST


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """carv-tiny's tokenizer under another name."""
    folder = tmp_path_factory.mktemp("models") / "mine"
    shutil.copytree(BUILT_IN["carv-tiny"] / "tokenizer", folder / "tokenizer")
    return folder


def test_by_name_or_by_words(copied: Path, sd_folder: Path, tmp_path: Path) -> None:
    for name in ("carv-tiny", " carv-tiny ", str(copied)):
        assert isinstance(model_knowledge(name), TinyKnowledge), name
    (tmp_path / "tokenizer").mkdir()
    for number, text in enumerate(("{", '{"a": 0}', "x" * 10**5)):
        (tmp_path / "tokenizer" / "vocab.json").write_text(text)
        assert type(model_knowledge(str(tmp_path))) is Knowledge, number
    for name in (str(sd_folder), "owner/name", "~nobody-here/x", "a\0b", ""):
        assert type(model_knowledge(name)) is Knowledge, name


def test_prompts_are_checked_by_what_is_known(copied: Path, sd_folder: Path) -> None:
    other = model_knowledge(str(sd_folder))
    other.check_prompt("a red zeppelin and a mug", "zeppelins", True)
    assert not other.training_data
    assert not other.true_shapes
    tiny = model_knowledge(str(copied))
    assert tiny.training_data
    assert tiny.true_shapes
    tiny.check_prompt("a red mug", "blue", True)
    with pytest.raises(CarvError, match="zeppelin"):
        tiny.check_prompt("a red zeppelin")
    with pytest.raises(CarvError, match="zeppelin"):
        tiny.check_prompt("a red mug", "zeppelin")
    longest = " ".join(["a"] * (LONGEST - 2) + ["red", "mug"])
    tiny.check_prompt(longest)
    with pytest.raises(CarvError, match="The negative prompt has 19 words"):
        tiny.check_prompt("a mug", longest + " a")
    with pytest.raises(CarvError, match="with 4 kept for the view"):
        tiny.check_prompt(longest, with_view=True)


def test_the_trainer_asks_what_is_known(copied: Path, sd_folder: Path) -> None:
    def check(model: Path, prompt: str, *words: str) -> None:
        name = f"system.guidance.pretrained_model_name_or_path={model}"
        check_prompt(load_config(None, [name, *words], prompt))

    check(sd_folder, "a zeppelin")
    check(copied, "a red mug")
    for prompt, word in (
        ("a zeppelin", "system.prompt_processor.view_dependent_prompting=true"),
        ("a red mug", "system.prompt_processor.negative_prompt=zeppelin"),
        (" ".join(["a"] * 15 + ["mug"]), "system.prompt_processor.view_dependent_prompting=true"),
    ):
        with pytest.raises(CarvError, match="carv-tiny"):
            check(copied, prompt, word)
    check(copied, " ".join(["a"] * 15 + ["mug"]), "system.prompt_processor.view_dependent_prompting=false")


def test_distill_asks_what_is_known(copied: Path, sd_folder: Path, tmp_path: Path) -> None:
    assert isinstance(read_prompts(None, str(copied)), TinyCaptions)
    with pytest.raises(CarvError, match="has no prompts of its own"):
        read_prompts(None, str(sd_folder))
    (tmp_path / "p.txt").write_text("a red mug\na zeppelin\n")
    assert read_prompts(str(tmp_path / "p.txt"), str(sd_folder)).first(2, Any) == ["a red mug", "a zeppelin"]
    with pytest.raises(CarvError, match="zeppelin"):
        read_prompts(str(tmp_path / "p.txt"), str(copied))


@pytest.mark.parametrize(("known", "classifier"), [(True, True), (True, False), (False, True)])
def test_a_comparison_knows_the_true_shapes(
    known: bool, classifier: bool, copied: Path, sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"system.guidance.pretrained_model_name_or_path={copied if known else sd_folder}"

    class Host:
        config = load_config(None, [name], "a red mug")
        device = "cpu"

    classifier_file = object() if classifier else None
    monkeypatch.setattr(TrueShape, "from_prompt", lambda prompt, data: object())
    monkeypatch.setattr("carv_3d.generate.run.PromptClassifier.for_prompt", lambda prompt, device: classifier_file)
    run = ScoredRun(Host(), tmp_path, Display(), Length(None, 4, 2))  # type: ignore[arg-type]
    assert (run.truth is not None) == (known and classifier)
