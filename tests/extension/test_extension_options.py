"""The extension's options in a host double: every option of ours is there, passed on, and checked."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import host_double as double
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.guidance.options import GuidanceOptions
from carv_3d.guidance.vsd import VSDOptions
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher

OTHER: dict[str, Any] = {
    "num_draws": 6, "stratify": "global", "antithetic": True, "proposal": "adaptive", "max_batch": 3,
    "guidance_scale": [0, 50.0, 7.5, 1000], "min_step_percent": 0.1, "max_step_percent": [0.9, 0.5, 100],
    "grad_clip": 0.5, "control_variate": True, "seed": 3, "half_precision_weights": False,
    "cfg_convention": "standard", "sqrt_anneal": True, "trainer_max_steps": 10, "weighting_strategy": "uniform",
    "objective": "csd", "use_sjc": True, "use_img_loss": True, "vae_sample": "draw", "use_recon_loss": True,
    "var_red": {"use_sjc": True, "var_red": False}, "pretrained_model_name_or_path": None,
    "model_config": "some/config", "vae": "some/vae", "loras": ["a.safetensors:0.5"],
}  # fmt: skip
"""Another value for every option, or several options where one alone says nothing; None is a folder."""
OTHER_VSD: dict[str, Any] = {
    "objective": "vsd_hifa", "guidance_scale_lora": 2.0, "lora_rank": 2, "lora_n_timestamp_samples": 3,
    "lora_cfg_training": False, "lora_max_batch": 1, "camera_condition_type": "mvp", "cfg_convention": "threestudio",
    "control_variate": True, "use_img_loss": True, "max_batch": 3,
}  # fmt: skip


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, sd_teacher: Any) -> dict[str, Any]:
    """What `StableDiffusionTeacher.load` was given last; it gives the shared teacher."""
    given: dict[str, Any] = {}

    def load(name: str, **how: Any) -> Any:
        given.clear()
        given.update(how, name=name)
        return sd_teacher

    monkeypatch.setattr(StableDiffusionTeacher, "load", load)
    return given


@pytest.mark.parametrize("name", OTHER)
def test_every_option_reaches_the_guidance(name: str, make: Callable[..., Any], loaded: dict[str, Any]) -> None:
    value = OTHER[name]
    given = value if isinstance(value, dict) else {name: "some/folder" if value is None else value}
    base = {"pretrained_model_name_or_path": "a/model", "cfg_convention": "threestudio", "seed": 0, "vae_sample": False}
    expected = GuidanceOptions(**{**base, **given})
    assert expected != GuidanceOptions(**base)
    carv = make(**{"pretrained_model_name_or_path": "a/model", **given})._carv
    assert carv.options == expected
    assert loaded["name"] == expected.pretrained_model_name_or_path
    assert loaded["half_precision"] == expected.half_precision_weights
    assert {key: loaded[key] for key in expected.model_files} == expected.model_files


def test_no_option_is_left_out(host: Any) -> None:
    assert set(OTHER) == set(GuidanceOptions.declared())
    for kind, options in (("stable-diffusion", GuidanceOptions), ("vsd", VSDOptions)):
        config = host.modules[f"carv-{kind}-guidance"].Config
        assert {field.name for field in fields(config)} >= set(options.declared())
    own = set(VSDOptions.declared()) - set(GuidanceOptions.declared()) - {"pretrained_model_name_or_path_lora"}
    assert own <= set(OTHER_VSD)


@pytest.mark.parametrize("name", OTHER_VSD)
def test_every_option_of_vsd_reaches_the_guidance(name: str, make_vsd: Callable[..., Any]) -> None:
    carv = make_vsd(**{name: OTHER_VSD[name]})._carv
    base = {key: getattr(carv.options, key) for key in ("pretrained_model_name_or_path", "seed", "vae_sample")}
    base["pretrained_model_name_or_path_lora"] = carv.options.pretrained_model_name_or_path_lora
    assert carv.options == VSDOptions(**base, **{name: OTHER_VSD[name]})
    assert carv.options != VSDOptions(**base)
    assert carv.lora_score.lora.layers["mid_block_attentions_0_transformer_blocks_0_attn1_to_q"].down.out_features == (
        carv.options.lora_rank
    )


HOW = {
    "enable_channels_last_format": "channels_last", "enable_attention_slicing": "attention_slicing",
    "enable_sequential_cpu_offload": "cpu_offload", "half_precision_weights": "half_precision",
}  # fmt: skip


@pytest.mark.parametrize("only", HOW)
def test_each_option_of_loading_is_passed_on_alone(
    only: str, make: Callable[..., Any], make_vsd: Callable[..., Any], host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Seen(Exception):
        pass

    passed: list[dict[str, Any]] = []
    load = StableDiffusionTeacher.load

    def teacher(name: str, **how: Any) -> Any:
        passed.append(how)
        return load(name, with_text=False)

    def denoiser(name: str, **how: Any) -> Any:
        passed.append(how)
        raise Seen

    monkeypatch.setattr(StableDiffusionTeacher, "load", teacher)
    monkeypatch.setattr(sys.modules["threestudio-carv.vsd"], "load_denoiser", denoiser)
    given = {name: name == only for name in HOW}
    make(**given)
    with pytest.raises(Seen):
        make_vsd(**given)
    expected = {"device": torch.device("cpu"), **{HOW[name]: value for name, value in given.items()}}
    whole = {**expected, **GuidanceOptions().model_files, "with_text": False}
    assert passed == [{**whole, "token_merging": None}, whole, expected]


def test_tokens_are_merged_where_it_is_asked_for(make: Callable[..., Any], loaded: dict[str, Any]) -> None:
    make(token_merging_params={"ratio": 0.3})
    assert loaded["token_merging"] is None
    make(token_merging=True)
    assert loaded["token_merging"] == {}
    make(token_merging=True, token_merging_params={"ratio": 0.3})
    assert loaded["token_merging"] == {"ratio": 0.3}


@pytest.mark.usefixtures("loaded")
def test_memory_efficient_attention_is_the_default_of_torch(make: Callable[..., Any], host: Any) -> None:
    said: list[str] = []
    host.info = said.append
    make()
    assert said == []
    make(enable_memory_efficient_attention=True)
    assert said == ["PyTorch 2 uses memory efficient attention by default."]


@pytest.mark.parametrize("by_view", [True, False])
def test_prompts_may_be_the_same_for_all_views(
    by_view: bool, make: Callable[..., Any], make_vsd: Callable[..., Any], rgb: Tensor, utils: Any
) -> None:
    make(view_dependent_prompting=by_view)(rgb, utils, **double.VIEWS)
    assert utils.asked == [by_view]
    vsd = make_vsd(view_dependent_prompting=by_view)
    vsd(rgb, utils, **double.VIEWS)
    assert utils.asked == [by_view, by_view, False]  # the LoRA's text is the same from every side
    vsd._images = lambda *_: None
    vsd.sample(utils, **double.VIEWS)
    assert utils.asked[3:] == [by_view]
    vsd.sample_lora(utils, **double.VIEWS)
    assert utils.asked[4:] == [False]


def test_a_value_may_come_from_yaml(make: Callable[..., Any], loaded: dict[str, Any]) -> None:
    text = "{a: 0.5, guidance: {num_draws: auto, guidance_scale: [0, 100.0, 7.5, 1000], grad_clip: '${a}'}}"
    options = make(**OmegaConf.create(text).guidance)._carv.options
    assert (options.num_draws, options.guidance_scale, options.grad_clip) == ("auto", [0, 100.0, 7.5, 1000], 0.5)


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        ({"num_draws": 0}, "num_draws is 0; it must be a whole number from 1 to 2^40, or auto"),
        ({"num_draws": "some"}, "num_draws is 'some'"),
        ({"objective": "vsd"}, "objective is 'vsd'"),
        ({"pretrained_model_name_or_path": "no/such-model-here"}, "no/such-model-here"),
        ({"token_merging": True, "token_merging_params": {"ratioo": 1}}, "tomesd"),
    ],
)
@pytest.mark.usefixtures("_offline")
def test_a_wrong_value_is_one_sentence(make: Callable[..., Any], cfg: dict[str, Any], said: str) -> None:
    with pytest.raises(CarvError, match=re.escape(said)):
        make(**cfg)


def test_an_unknown_option_is_refused_with_the_nearest_one(make: Callable[..., Any]) -> None:
    with pytest.raises(CarvError, match="no option 'num_drawz'; did you mean num_draws"):
        make(num_drawz=3)
    with pytest.raises(CarvError, match=r"no option 'zzz'; there are: \w+, .*num_draws, .*enable_\w+"):
        make(zzz=3)


def test_a_model_of_another_prediction_type_is_one_sentence(
    make: Callable[..., Any], sd_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(sd_folder, tmp_path / "model")
    file = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": "dog"}))
    with pytest.raises(CarvError, match="prediction_type is 'dog'; it must be one of epsilon, sample, v_prediction"):
        make(pretrained_model_name_or_path=str(tmp_path / "model"))


@pytest.mark.parametrize(
    "name", ["view_dependent_prompting", "enable_sequential_cpu_offload", "enable_attention_slicing"]
)
def test_a_text_is_no_switch_of_the_host(make: Callable[..., Any], name: str) -> None:
    with pytest.raises(CarvError, match=f"{name} is 'no'; it must be true or false"):
        make(**{name: "no"})


def test_what_a_prompt_processor_must_not_give_is_named(
    make: Callable[..., Any], rgb: Tensor, utils: Any, perp_neg: Any
) -> None:
    guidance = make(num_draws=1)
    views = {**double.VIEWS, "rgb": rgb}
    for changed, said in (
        ({"prompt_utils": 3}, "prompt_utils is 3; give what a prompt processor returns"),
        ({"prompt_utils": replace(utils, uncond=utils.uncond[:1])}, r"gave \(3, 20, 16\) .* need a tensor \(4, L, D\)"),
        ({"prompt_utils": replace(utils, text=utils.text[..., 0], uncond=utils.uncond[..., 0])}, r"gave \(4, 20\) as"),
        ({"prompt_utils": replace(perp_neg, weights=perp_neg.weights[0])}, r"weights are \(2,\); .* be \(2, M\)"),
        ({"prompt_utils": replace(perp_neg, negatives=perp_neg.negatives[:, :1])}, r"gave \(6, 20, 16\) as embed"),
        ({"rgb": [[0.5]] * 2}, "rgb is a list; it must be a torch tensor of renders"),
    ):
        with pytest.raises(CarvError, match=said):
            guidance(**{**views, "prompt_utils": utils, **changed})
