"""What the prompt becomes for each camera under Perp-Neg: threestudio's mixtures and weights at known azimuths."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from carv_3d.generate.config import PromptOptions, load_config
from carv_3d.generate.trainer import TextTo3D
from carv_3d.generate.view_text import fitted, view_text
from carv_3d.scenes.cameras import orbit
from carv_3d.teachers.load import load_teacher
from carv_3d.teachers.tokens import shortened

OPTIONS = PromptOptions(prompt="a red mug", negative_prompt="bad", fine_views=False, use_perp_neg=True)
END = math.exp(-0.5)  # of the decay, at r = 1


def sides(teacher: Any) -> dict[str, Tensor]:
    names = ("front", "side", "back", "overhead")
    return dict(zip(names, teacher.text_embeddings([f"a red mug, {name} view" for name in names])))


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize(
    ("azimuth", "mixture", "negatives", "weights"),
    [
        (0, {"front": 1}, ("front", "side"), (4 * END - 2.426, 4 - 2.426)),
        (45, {"front": 0.5, "side": 0.5}, ("front", "side"), (4 * END**0.5 - 2.426, 4 * END**0.5 - 2.426)),
        (90, {"side": 1}, ("side", "front"), (END - 0.606, END + 0.967)),
        (135, {"side": 0.5, "back": 0.5}, ("side", "front"), (END**0.5 - 0.606, END**0.5 + 0.967)),
        (180, {"back": 1}, ("side", "front"), (1 - 0.606, 1 + 0.967)),
    ],
)
def test_the_text_lies_between_two_sides_and_the_others_are_pushed_away(
    azimuth: float, mixture: dict[str, float], negatives: tuple[str, str], weights: tuple[float, float], turn: int,
    sd_teacher: Any,
) -> None:  # fmt: skip
    cond, by_side = view_text(sd_teacher, OPTIONS, orbit(1, elevation=10.0, start=turn * azimuth)), sides(sd_teacher)
    assert cond.perp_neg is not None
    assert cond.perp_neg_weights is not None
    expected = torch.stack([share * by_side[name] for name, share in mixture.items()]).sum(0)
    torch.testing.assert_close(cond.text[0], expected)
    assert torch.equal(cond.perp_neg[0], torch.stack([by_side[name] for name in negatives]))
    torch.testing.assert_close(cond.perp_neg_weights, -torch.tensor([weights]), atol=1e-4, rtol=0)
    assert torch.equal(cond.uncond, sd_teacher.text_embeddings(["bad"]))


def test_from_above_nothing_is_pushed_away(sd_teacher: Any) -> None:
    cond = view_text(sd_teacher, OPTIONS, orbit(2, elevation=70.0))
    assert cond.perp_neg is not None
    assert cond.perp_neg_weights is not None
    assert torch.equal(cond.text, sides(sd_teacher)["overhead"].expand(2, -1, -1))
    assert torch.equal(cond.perp_neg_weights, torch.zeros(2, 2))


def test_the_first_render_alone(sd_teacher: Any) -> None:
    cond = view_text(sd_teacher, OPTIONS, orbit(3, elevation=10.0))
    first, alone = cond.samples(slice(1)), view_text(sd_teacher, OPTIONS, orbit(1, elevation=10.0))
    assert len(first.tensors) == len(alone.tensors) == 4
    for a, b in zip(first.tensors, alone.tensors):
        assert torch.equal(a, b)


@pytest.mark.parametrize("perp_neg", [False, True])
def test_a_negative_prompt_of_its_own_leaves_the_empty_prompt(sd_teacher: Any, perp_neg: bool) -> None:
    options = PromptOptions(prompt="a red mug", negative_prompt="bad", fine_views=False, use_perp_neg=perp_neg)
    cond = view_text(sd_teacher, options, orbit(2, elevation=10.0), apart=True)
    assert torch.equal(cond.uncond, sd_teacher.text_embeddings([""]))
    assert torch.equal(cond.negative, sd_teacher.text_embeddings(["bad"]))
    assert view_text(sd_teacher, options, orbit(2, elevation=10.0)).negative is None


@pytest.mark.parametrize("folder", ["sd_folder", "xl_folder"])
def test_a_prompt_that_leaves_no_room_is_cut_so_that_views_differ(
    folder: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = load_teacher(str(request.getfixturevalue(folder)), device="cpu")  # 20 tokens, one a character
    options = PromptOptions(prompt="a mug of red tea on a table")
    short = fitted(teacher, options)
    assert short.prompt == "a mu"[: len(short.prompt)]
    assert "'a mug of red tea on a table' is cut to 'a', so that the words of each view fit in 20 tokens" in caplog.text
    text = view_text(teacher, short, orbit(8, elevation=10.0)).text
    assert len({tuple(row.flatten().tolist()) for row in text}) == 8
    caplog.clear()
    assert fitted(teacher, replace(options, prompt="a")).prompt == "a"
    assert fitted(teacher, replace(options, view_dependent_prompting=False)).prompt == options.prompt
    assert not caplog.text


@pytest.mark.parametrize(
    ("prompt", "kept"),
    [
        ("a red mug", "a red mug"),
        ("a red mug, on a table", "a red mug"),  # the comma goes with what it led to
        ("a red mugs and all", "a red"),  # no half of a word
        ("红色杯子红色杯子红色杯子", "红色"),  # a text without spaces is cut within
    ],
)
def test_a_cut_prompt_ends_in_a_whole_word(prompt: str, kept: str, sd_teacher: Any) -> None:
    length = 2 + len("aredmug") + len(",leftview")
    assert shortened(sd_teacher.tokenizer, prompt, [", left view"], length) == kept


def test_where_no_ending_fits_the_prompt_stays(sd_teacher: Any) -> None:
    assert shortened(sd_teacher.tokenizer, "a red mug", [", left view"], 8) == "a red mug"


def test_a_run_asks_for_the_prompt_that_fits(sd_teacher: Any, sd_folder: Path) -> None:
    config = load_config(prompt="a red mug on the table", overrides=[f"pretrained_model_name_or_path={sd_folder}"])
    host = TextTo3D(config, sd_teacher)
    assert host.config.prompt == "a red mug on the table"
    assert host.prompts.prompt == "a"
    texts = [host.view_text(cameras).text for cameras in (host.orbit(8)[:1], host.orbit(8)[4:5])]
    assert not torch.equal(*texts)
