"""What callers of the guidance give by mistake: one sentence each."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carv_3d.core.costs import CostMeter
from carv_3d.errors import CarvError
from carv_3d.guidance.cfg import Conditioning, classifier_free
from carv_3d.guidance.options import GuidanceOptions
from carv_3d.guidance.sds import SDSGuidance
from carv_3d.guidance.vsd import VSDGuidance
from carv_3d.teachers.gaussian import GaussianTeacher

RETURNED: list[tuple[Callable[[Tensor], Any], str]] = [
    (lambda z: (z,), "eps_hat returned a tuple, not a tensor: return one of its items"),
    (lambda z: SimpleNamespace(sample=z), "eps_hat returned a SimpleNamespace, .* return its .sample"),
    (lambda z: z[:, :1], r"eps_hat returned \(\d+, 1, 4, 4\) for z_t of \(\d+, 4, 4, 4\)"),
]


def teacher() -> GaussianTeacher:
    return GaussianTeacher(torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
@pytest.mark.parametrize(("value", "said"), RETURNED)
def test_what_a_teacher_must_not_return_is_named(value: Any, said: str, scale: float) -> None:
    exact = teacher()
    text = exact.text_embeddings([""])
    exact.eps_hat = lambda z_t, t, y: value(z_t)  # type: ignore[method-assign]
    rgb = torch.rand(2, 4, 4, 3).requires_grad_()
    with pytest.raises(CarvError, match=said):
        SDSGuidance(exact, GuidanceOptions(guidance_scale=scale))(rgb, text, text, 0)
    z, t = torch.zeros(2, 4, 4, 4), torch.tensor([5, 6])
    with pytest.raises(CarvError, match=said):
        classifier_free(exact.eps_hat, z, t, (text.expand(2, -1, -1),), (text.expand(2, -1, -1),), scale)


def test_options_are_given_by_name() -> None:
    guidance = SDSGuidance(teacher(), GuidanceOptions(seed=3), num_draws=8, guidance_scale=7.5, world_size=2)
    assert guidance.options == GuidanceOptions(seed=3, num_draws=8, guidance_scale=7.5)
    assert (guidance.estimator.num_draws, guidance.estimator.options.world_size) == (8, 2)
    score: Any = SimpleNamespace(schedule=teacher().schedule)
    vsd = VSDGuidance(teacher(), score, num_draws=6, lora_rank=2, world_size=2)
    assert (vsd.sds.estimator.num_draws, vsd.options.lora_rank) == (6, 2)
    assert [e.options.world_size for e in (vsd.sds.estimator, vsd.training.estimator)] == [2, 2]
    for name, near in (("num_drawz", "num_draws"), ("min_step", "min_step_percent"), ("world", "world_size")):
        with pytest.raises(CarvError, match=f"SDSGuidance has no option '{name}'; did you mean {near}"):
            SDSGuidance(teacher(), **{name: 1})
    with pytest.raises(CarvError, match="VSDGuidance has no option 'lora_rnk'; did you mean lora_rank"):
        VSDGuidance(teacher(), score, lora_rnk=1)


def test_a_call_that_could_move_nothing_or_is_misspelt_is_one_sentence() -> None:
    exact, rgb, camera = teacher(), torch.rand(1, 4, 4, 3), torch.eye(4)[None]
    text, score = exact.text_embeddings([""]), SimpleNamespace(schedule=exact.schedule)
    guidance, vsd = SDSGuidance(exact), VSDGuidance(exact, score)  # type: ignore[arg-type]
    calls: list[tuple[str, Callable[..., Any]]] = [
        ("SDSGuidance", lambda x, **more: guidance(x, text, text, 0, **more)),
        ("VSDGuidance", lambda x, **more: vsd(x, text, text, text, camera, 0, **more)),
    ]
    with pytest.raises(CarvError, match=r"rgb needs no gradient .*, or take guide\(...\).estimate.grad"):
        guidance(rgb, text, text, 0)
    with torch.no_grad():  # hosts validate so
        assert not guidance(rgb.clone().requires_grad_(), text, text, 0).loss_sds.requires_grad
    for name, call in calls:
        with pytest.raises(CarvError, match=f"{name} has no option 'generater'; did you mean generator"):
            call(rgb.detach().requires_grad_(), generater=None)
    assert guidance.guide(rgb, Conditioning(text, text), 0).estimate.grad.abs().sum() > 0


def test_images_in_0_to_255_are_refused_at_every_call() -> None:
    exact = teacher()
    guidance, text, rgb = SDSGuidance(exact), exact.text_embeddings([""]), torch.rand(1, 4, 4, 3).requires_grad_()
    for _ in range(2):
        guidance(rgb, text, text, 0)
        with pytest.raises(CarvError, match=r"rgb reaches 2\d\d.*divide by 255"):
            guidance((rgb * 0 + 1) * 255, text, text, 0)


WHOLE, SIDES = "it must be a whole number from 0 to 2", r"it must be \(height, width\), whole numbers from 1 to 8192"
MISUSED: list[tuple[dict[str, Any], str]] = [
    *(({"step": value}, f"step is .*; {WHOLE}") for value in (float("nan"), -(10**6), 0.5, True, 1e300, "3", None)),
    *(({name: value}, f"{name} is .*; {WHOLE}") for name in ("step", "epoch") for value in (10**30, 2**53 + 1)),
    *(({"epoch": value}, f"epoch is .*; {WHOLE}") for value in (float("nan"), None, "1", [1], -1, torch.ones(2))),
    *(({name: "no"}, f"{name} is 'no'; it must be True or False") for name in ("with_recon", "rgb_as_latents")),
    *(({"size": value}, f"size is .*; {SIDES}") for value in ((0, 8), (8,), "a", (10**6, 10**6), 8, (8, 8.5))),
    *(({"generator": value}, "generator is .*; it must be a torch.Generator") for value in ("x", 3)),
]


@pytest.mark.parametrize("schedule", [0.98, [0.98, 0.4, 200], [0.98, 0.4, 200.0]])
@pytest.mark.parametrize(("given", "said"), MISUSED)
def test_what_a_step_cannot_be_given_is_named_whatever_the_schedule(
    given: dict[str, Any], said: str, schedule: Any
) -> None:
    exact, rgb, camera = teacher(), torch.rand(1, 8, 8, 3).requires_grad_(), torch.eye(4)[None]
    text, score = exact.text_embeddings([""]), SimpleNamespace(schedule=exact.schedule)
    words: dict[str, Any] = {"step": 0, **given}
    with pytest.raises(CarvError, match=said):
        SDSGuidance(exact, max_step_percent=schedule)(rgb, text, text, **words)
    with pytest.raises(CarvError, match=said):
        SDSGuidance(exact, max_step_percent=schedule).guide(rgb, Conditioning(text, text), **words)
    vsd = VSDGuidance(exact, score, max_step_percent=schedule)  # type: ignore[arg-type]
    with pytest.raises(CarvError, match=said):
        vsd(rgb, text, text, text, camera, **words)


def test_steps_of_other_kinds_of_whole_numbers_stand_for_theirs() -> None:
    guidance = SDSGuidance(teacher(), max_step_percent=[0.98, 0.4, 200])
    rgb, text = torch.rand(1, 4, 4, 3).requires_grad_(), teacher().text_embeddings([""])
    for step in (100, np.int64(100), torch.tensor(100), 100.0):
        assert guidance(rgb, text, text, step).scalars["max_step"] == 690  # type: ignore[arg-type]
    assert guidance(rgb, text, text, 100, size=[6, 4]).latents.shape == (1, 4, 4, 4)


def test_renders_that_are_no_images_are_named_and_overshoot_is_none() -> None:
    exact = teacher()
    guidance, text, rgb = SDSGuidance(exact), exact.text_embeddings([""]), torch.rand(1, 4, 4, 3).requires_grad_()
    refused = (
        (rgb - 200, r"rgb goes down to -\d+\.?\d*; images are in \[0, 1\]: for some in \[-1, 1\] give rgb / 2 \+ 0.5"),
        (rgb * 2 - 1 - 0 * rgb[:, :1, :1], "rgb goes down to"),
        (rgb.to(torch.complex64), "rgb is of type torch.complex64; it must be floating-point numbers"),
        (rgb.to_sparse(), "rgb is torch.sparse_coo; it must be a dense tensor"),
        (rgb.to("meta"), "rgb is without data; it must be a dense tensor"),
    )
    for renders, said in refused:
        with pytest.raises(CarvError, match=said):
            guidance(renders, text, text, 0)
    with pytest.raises(CarvError, match=r"rgb is of type torch\.uint8"):
        guidance.guide((rgb * 255).to(torch.uint8), Conditioning(text, text), 0)
    guidance(rgb * 1.2 - 0.1, text, text, 0)
    guidance(rgb.new_full((1, 4, 4, 4), -7.0).requires_grad_(), text, text, 0, rgb_as_latents=True)
    assert guidance(rgb * float("nan"), text, text, 0).scalars["nonfinite"] > 0  # skipped and counted, as before


def test_texts_of_other_shapes_than_the_prompts_are_named() -> None:
    exact = teacher()
    guidance, text, rgb = SDSGuidance(exact), exact.text_embeddings([""]), torch.rand(1, 4, 4, 3).requires_grad_()
    with pytest.raises(CarvError, match=r"prompts_uncond has shape .* and prompts_cond .*; they differ in the batch"):
        guidance(rgb, text, text.repeat(1, 3, 1), 0)


def test_images_of_no_pixels_and_what_is_no_state_are_named() -> None:
    guidance, text = SDSGuidance(teacher()), teacher().text_embeddings([""])
    for shape in ((0, 4, 4, 3), (2, 0, 4, 3)):
        with pytest.raises(CarvError, match=r"guidance takes images \(B, H, W, 3\), not"):
            guidance(torch.rand(shape).requires_grad_(), text, text, 0)
    before = guidance.state_dict()
    for state in ({}, None, {"estimator": before["estimator"]}):
        with pytest.raises(CarvError, match=r"no state of a SDSGuidance \(.*\); give what its state_dict\(\) returned"):
            guidance.load_state_dict(state)  # type: ignore[arg-type]
    guidance.load_state_dict(before)


def test_objects_are_shown_by_what_they_are() -> None:
    exact = teacher()
    guidance = SDSGuidance(exact, num_draws=2)
    named = "GaussianTeacher(names=['0', '1'], std=0.5, latent_channels=4, latent_size=4)"
    assert repr(exact) == named
    assert repr(guidance).startswith(f"SDSGuidance(objective='sds', teacher={named}, estimator=CarvEstimator(K=2, ")
    text = exact.text_embeddings([""])
    out = guidance(torch.rand(1, 4, 4, 3).requires_grad_(), text, text, 0)
    assert repr(out).startswith("GuidanceOutput(estimate=Estimate(R=1, K=2, ")
    meter = CostMeter()
    meter.count(nfe=3)
    assert repr(meter) == "CostMeter(seconds={}, counts={'nfe': 3, 'renders': 0})"


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("generator", torch.zeros(3), "no state of a SDSGuidance"),
        ("estimator", {}, "it has no 'proposal'"),
        ("auto", {"variances": {"out2": float("nan")}}, "the saved state's auto.variances.out2 holds nan: start from"),
        ("auto", {"calls": None, "left": "a", "next_burst": []}, "no state of a SDSGuidance|'variances'"),
    ],
)
def test_a_state_that_is_refused_changes_nothing(part: str, value: Any, said: str) -> None:
    options = GuidanceOptions(num_draws="auto", proposal="adaptive", seed=0)
    source, guidance = SDSGuidance(teacher(), options), SDSGuidance(teacher(), options)
    for each in (source, guidance, guidance):
        each(torch.rand(2, 4, 4, 3).requires_grad_(), *[each.teacher.text_embeddings([""])] * 2, 0)
    state = source.state_dict()
    if part == "auto" and "variances" in value:
        value = {**state["auto"], "variances": {**state["auto"]["variances"], **value["variances"]}}
    before = guidance.state_dict()
    with pytest.raises(CarvError, match=said):
        guidance.load_state_dict({**state, part: value})
    assert repr(guidance.state_dict()) == repr(before)
    guidance.load_state_dict(state)
    assert repr(guidance.state_dict()) == repr(state)


def test_embeddings_of_no_numbers_or_of_no_words_are_named() -> None:
    guidance, rgb = SDSGuidance(teacher(), num_draws=1), torch.rand(2, 4, 4, 3).requires_grad_()
    text = guidance.teacher.text_embeddings([""])
    for changed, said in (
        (text.long(), "is a tensor of torch.int64; it must be of floating-point numbers"),
        (text[:, :0], r"has shape \(1, 0, 2\), so it holds no tokens; each text needs one"),
    ):
        with pytest.raises(CarvError, match=rf"prompts_cond {said}"):
            guidance(rgb, changed, changed, 0)
