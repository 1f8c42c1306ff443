"""A call that fails over its arguments is one sentence; one that works, or fails over something else, is left alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pytest
import torch
from torch import Tensor

import carv_3d
from carv_3d.core.arguments import checked, fits
from carv_3d.core.costs import CostMeter
from carv_3d.errors import CarvError
from carv_3d.generate.config import load_config
from carv_3d.guidance.sds import SDSGuidance
from carv_3d.guidance.vsd import VSDGuidance
from carv_3d.teachers.gaussian import GaussianTeacher
from carv_3d.teachers.load import load_teacher
from carv_3d.teachers.lora_score import LoraScore


class Walker(Protocol):
    speed: float

    def walk(self) -> None: ...


@checked
def example(images: Tensor, names: Sequence[str] = (), device: str | torch.device | None = None, **more: float) -> int:
    """Fails over whatever it is not given rightly, and over what `more` holds."""
    torch.device("cpu" if device is None else device)
    return images.dim() + sum(len(name) for name in names) + int(sum(more.values()))


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (torch.ones(2), Tensor, True),
        (torch.ones(2, device="meta"), Tensor, False),
        ([1.0], Tensor, False),
        (np.int64(3), int, True),
        (True, int, False),
        (3, float, True),
        ("3", float | None, False),
        (None, float | None, True),
        (["a"], Sequence[str], True),
        ("a", Sequence[str], False),
        ([1], Sequence[str], False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (len, Callable[[str], int], True),
        (3, Callable[[str], int], False),
        ("x", Path | None, True),
        (3, Path | None, False),
        ("cpu", str | torch.device, True),
        ("moon", str | torch.device, False),
        (3, Any, True),
        (3, Walker, False),
        (type("Dog", (), {"speed": 1.0, "walk": print})(), Walker, True),
    ],
)
def test_what_fits_an_annotation(value: Any, kind: Any, expected: bool) -> None:
    assert fits(value, kind) is expected


def test_failures_over_arguments_are_sentences_and_others_stay() -> None:
    assert example(torch.ones(2, 2), ["ab"]) == 4
    wrong: Any = [1, 2]
    with pytest.raises(CarvError, match=r"^images is a list; it must be a torch tensor with data\.$"):
        example(wrong)
    with pytest.raises(CarvError, match=r"^names is 3; it must be a list of texts"):
        example(torch.ones(1), 3)  # type: ignore[arg-type]
    with pytest.raises(CarvError, match=r"^device is 'moon'; it must be text, or a device such as cpu, or None"):
        example(torch.ones(1), device="moon")
    with pytest.raises(CarvError, match=r"unexpected|missing .*; the call is example\(images, names=\(\), device"):
        example()  # type: ignore[call-arg]
    with pytest.raises(OverflowError):  # all arguments are what they must be
        example(torch.ones(1), more=float("inf"))


TEACHER = GaussianTeacher(torch.zeros(1, 4, 4, 4))
WRONG: Any = "x"
CALLS: list[tuple[Callable[[], object], str]] = [
    (lambda: GaussianTeacher([1.0]), "means is a list; it must be a torch tensor"),  # type: ignore[arg-type]
    (lambda: GaussianTeacher(torch.zeros(1, 4, 4, 4), std=WRONG), "std is 'x'; it must be a number"),
    (lambda: TEACHER.text_embeddings(3), "prompts is 3; it must be a list of texts"),  # type: ignore[arg-type]
    (lambda: CostMeter("moon"), "device is 'moon'; it must be a device such as cpu, or text"),
    (lambda: CostMeter(np.ones(2)), "device is a ndarray"),  # type: ignore[arg-type]
    (lambda: TEACHER.text_embeddings(["", 3]), "prompts is a list that holds 3; it must be a list of texts"),  # type: ignore
    (lambda: SDSGuidance(WRONG), "teacher is 'x'; it must be a Teacher"),
    (lambda: SDSGuidance(TEACHER, WRONG), "options is 'x'; it must be a GuidanceOptions, or None"),
    (lambda: SDSGuidance(TEACHER)(WRONG, WRONG, WRONG, 0), "is 'x'; it must be"),
    (lambda: VSDGuidance(TEACHER, [1]), "lora_score is a list; it must be a TrainedScore"),  # type: ignore[arg-type]
    (lambda: LoraScore(WRONG), "denoiser is 'x'; it must be a Denoiser"),
    (lambda: load_config(3), "path is 3; it must be a path, or text, or None"),  # type: ignore[arg-type]
    (lambda: load_config(overrides=3), "overrides is 3; it must be a list of texts"),  # type: ignore[arg-type]
    (lambda: carv_3d.StableDiffusionTeacher.load("a/" + "b" * 10_000), "is too long for a path"),
    (lambda: load_teacher("carv-tiny", loras="x.safetensors"), r"a list of texts: \['x.safetensors'\]"),
    (lambda: load_teacher("carv-tiny", folder="x"), "leave folder out, and name it as name_or_path"),
    (lambda: load_config(overrides="num_draws=2"), r"overrides is 'num_draws=2'; .*: \['num_draws=2'\]"),
    (lambda: GaussianTeacher(torch.zeros(1, 4, 4, 4), std=-1.0), "std is -1.0; it must be a number of at least 0"),
    (lambda: GaussianTeacher(torch.zeros(1, 4, 4, 4), std=float("nan")), "std is nan"),
    (lambda: GaussianTeacher(torch.zeros(0, 4, 4, 4)), r"means have shape \(0, 4, 4, 4\)"),
    (lambda: GaussianTeacher(torch.zeros(1, 4, 4, 4), image_size=0), "image_size 0 is no multiple"),
    (lambda: carv_3d.StableDiffusionTeacher.load("b" * 300), "the name .* is too long for a path"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "said"), CALLS)
def test_a_wrong_argument_of_a_public_call_is_one_sentence(call: Callable[[], object], said: str) -> None:
    with pytest.raises(CarvError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_arguments_of_a_loaded_model_are_named(sd_teacher: Any) -> None:
    image, z, t = torch.rand(1, 3, 16, 16), torch.ones(1, 4, 8, 8), torch.tensor([5])
    text = sd_teacher.text_embeddings(["a"])
    for call, said in (
        (lambda: sd_teacher.encode([1]), "images is a list; it must be a torch tensor"),
        (lambda: sd_teacher.encode(image, generator="x"), "generator is 'x'; it must be a torch.Generator, or None"),
        (lambda: sd_teacher.decode(0.5), "latents is 0.5; it must be a torch tensor"),
        (lambda: sd_teacher.decode(torch.ones(1, 4, 8, 8, device="meta")), "latents is a tensor without data"),
        (lambda: sd_teacher.encode(image.to(torch.complex64)), "images are of type torch.complex64"),
        (lambda: sd_teacher.decode(z.long()), "latents are of type torch.int64"),
        (lambda: sd_teacher.encode(image[:0]), r"sides that are multiples of 2, not \(0, 3, 16, 16\)"),
        (lambda: sd_teacher.decode(torch.ones(1, 3, 8, 8)), r"decode takes latents \(B, 4, h, w\), not \(1, 3, 8, 8\)"),
        (lambda: sd_teacher.decode(torch.ones(4, 8, 8)), r"decode takes latents .*, not \(4, 8, 8\)"),
        (lambda: sd_teacher.text_embeddings(["a", "\ud800"]), "prompts is .*ud800'.; half of a character is in it"),
        (lambda: sd_teacher.eps_hat(z, t, None), "text_emb is None; it must be a torch tensor"),
        (lambda: sd_teacher.eps_hat(z, t + 1000, text), "t goes from 1005 to 1005; .* are 0 to 999"),
        (lambda: sd_teacher.eps_hat(z, t - 6, text), "t goes from -1 to -1"),
        (
            lambda: sd_teacher.eps_hat(z.repeat(2, 1, 1, 1), t, text),
            r"z_t \(2, 4, 8, 8\), t \(1,\) and text_emb \(1, 20",
        ),
        (lambda: LoraScore(sd_teacher, rank=10**9), "lora_rank is 1000000000; it must be .* from 1 to 4096"),
        (lambda: sd_teacher.text_embeddings(2**70), r"prompts is 1180591620717411303424; it must be a list of texts"),
    ):
        with pytest.raises(CarvError, match=said):
            call()
