"""Classifier-free guidance and Perp-Neg: their formulas, and how many samples the model sees for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact import guided
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.guidance.cfg import Conditioning, classifier_free, effective_scale, perpendicular, predict
from carv_3d.teachers.gaussian import GaussianTeacher

MEANS = torch.randn(3, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Counting(GaussianTeacher):
    """The exact teacher; it counts the samples of each call."""

    def __init__(self) -> None:
        super().__init__(MEANS, std=0.4)
        self.samples: list[int] = []

    def eps_hat(self, z_t: Tensor, t: Tensor, text_emb: Tensor) -> Tensor:
        self.samples.append(len(z_t))
        return super().eps_hat(z_t, t, text_emb)


def given(n: int, M: int = 0, seed: int = 0) -> tuple[Tensor, Tensor, Conditioning]:
    """z_t, t and what n samples are conditioned on, with M negatives each for Perp-Neg."""
    g = torch.Generator().manual_seed(seed)

    def text(*shape: int) -> Tensor:
        return torch.randn(n, *shape, 1, 3, generator=g, dtype=torch.float64).log_softmax(-1)

    z_t = torch.randn(n, 3, 2, 2, generator=g, dtype=torch.float64)
    t = torch.randint(20, 980, (n,), generator=g)
    perp_neg = (text(M), -torch.rand(n, M, generator=g)) if M else (None, None)
    return z_t, t, Conditioning(text(), text(), text(), *perp_neg)


def test_conventions() -> None:
    assert [effective_scale(7.5, name) for name in ("standard", "threestudio")] == [7.5, 8.5]
    with pytest.raises(CarvError, match="cfg_convention is 'other'; it must be one of standard, threestudio"):
        effective_scale(1.0, "other")


@pytest.mark.parametrize(("s", "samples"), [(7.5, 6), (1.0, 3), (0.0, 3), (-1.0, 6)])
def test_guidance_is_one_batch_and_no_sample_too_many(s: float, samples: int) -> None:
    teacher = Counting()
    z_t, t, cond = given(3)
    expected = guided(GaussianTeacher(MEANS, std=0.4), z_t, t, cond.text, cond.uncond, s)
    torch.testing.assert_close(classifier_free(teacher.eps_hat, z_t, t, (cond.text,), (cond.uncond,), s), expected)
    e = predict(teacher.eps_hat, z_t, t, cond, s, ("guided",))
    torch.testing.assert_close(e.guided, expected)
    assert teacher.samples == [samples, samples]


@pytest.mark.parametrize(
    ("needs", "s", "samples"),
    [
        (("text",), 7.5, 2),
        (("text", "uncond"), 7.5, 4),
        (("guided", "uncond"), 1.0, 4),
        (("guided", "text"), 1.0, 2),
        (("guided", "negative"), 7.5, 6),
        (("guided", "negative"), 1.0, 4),
        (("negative",), 7.5, 2),
    ],
)
def test_predictions_are_those_that_are_needed(needs: tuple[str, ...], s: float, samples: int) -> None:
    teacher, plain = Counting(), GaussianTeacher(MEANS, std=0.4)
    z_t, t, cond = given(2)
    e = predict(teacher.eps_hat, z_t, t, cond, s, needs)
    assert teacher.samples == [samples]
    for name in needs:
        if name == "guided":
            expected = guided(plain, z_t, t, cond.text, cond.uncond, s)
        else:
            expected = plain.eps_hat(z_t, t, getattr(cond, name))
        torch.testing.assert_close(getattr(e, name), expected)


def test_a_teacher_may_write_to_its_arguments() -> None:
    class Writing(Counting):
        def eps_hat(self, z_t: Tensor, t: Tensor, text_emb: Tensor) -> Tensor:
            out = super().eps_hat(z_t, t, text_emb)
            for x in (z_t, t, text_emb):
                x.zero_()
            return out

    for needs in (("text",), ("text", "uncond")):
        z_t, t, cond = given(2)
        kept = [x.clone() for x in (z_t, t, cond.text)]
        predict(Writing().eps_hat, z_t, t, cond, 2.0, needs)
        for x, before in zip((z_t, t, cond.text), kept):
            assert torch.equal(x, before)


def test_perpendicular_known_value() -> None:
    x, y = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]])
    assert torch.equal(perpendicular(x, y), torch.tensor([[0.0, 4.0]]))


@pytest.mark.parametrize("s", [7.5, 1.0, 0.0])
def test_perp_neg_written_out(s: float) -> None:
    teacher, plain = Counting(), GaussianTeacher(MEANS, std=0.4)
    z_t, t, cond = given(2, M=2)
    assert cond.perp_neg is not None
    assert cond.perp_neg_weights is not None
    guided = predict(teacher.eps_hat, z_t, t, cond, s, ("guided",)).guided
    assert teacher.samples == [8]  # text, unconditional and two negatives, of two samples
    for n in range(2):
        sample = slice(n, n + 1)
        texts = (cond.text[n], cond.uncond[n], *cond.perp_neg[n])
        text, null, *negatives = (plain.eps_hat(z_t[sample], t[sample], x[None]) for x in texts)
        e = text - null
        push = e.clone()
        for m in (0, 1):
            d = negatives[m] - null
            push += cond.perp_neg_weights[n, m] * (d - (d * e).sum() / (e * e).sum() * e)
        torch.testing.assert_close(guided[sample], null + s * push)


def test_perp_neg_of_two_is_two_perp_negs_of_one(sd_teacher: Any) -> None:
    g = torch.Generator().manual_seed(9)
    z, t = torch.randn(2, 4, 8, 8, generator=g), torch.tensor([300, 700])
    text, uncond = (torch.randn(2, sd_teacher.context_length, 16, generator=g) for _ in range(2))
    negatives = torch.randn(2, 2, *text.shape[1:], generator=g)
    cond = Conditioning(text, uncond, None, negatives, -torch.rand(2, 2, generator=g))
    with torch.no_grad():
        both = predict(sd_teacher.eps_hat, z, t, cond, 7.5, ("guided",)).guided
        for i in (0, 1):
            sample = cond.filled([x[i : i + 1] for x in cond.tensors])
            each = predict(sd_teacher.eps_hat, z[i : i + 1], t[i : i + 1], sample, 7.5, ("guided",)).guided
            torch.testing.assert_close(both[i : i + 1], each, rtol=1e-4, atol=1e-4)


def test_conditioning_keeps_its_fields() -> None:
    _, _, cond = given(2, M=2)
    cond = cond._replace(negative=None, camera=torch.rand(2, 16))
    doubled = cond.filled([x.repeat_interleave(3, 0) for x in cond.tensors])
    assert doubled.negative is None
    assert doubled.images is None
    scales = [c.scale(7.5, name) for c in (cond, cond._replace(perp_neg=None)) for name in ("standard", "threestudio")]
    assert scales == [7.5, 7.5, 7.5, 8.5]  # Perp-Neg's is the scale itself
    for field in ("text", "uncond", "perp_neg", "perp_neg_weights", "camera"):
        assert torch.equal(getattr(doubled, field), getattr(cond, field).repeat_interleave(3, 0))


def test_one_embedding_serves_all_renders_and_other_shapes_are_named() -> None:
    _, _, cond = given(1, M=2)
    all_four = cond.per_render(4)
    assert all_four.text.shape == (4, 1, 3)
    assert all_four.perp_neg is not None
    assert all_four.perp_neg.shape == (4, 2, 1, 3)
    _, _, two = given(2, M=2)
    wrong = {
        "prompts_cond has shape": {"text": two.text[:, 0]},
        r"prompts_uncond has shape \(2, 1, 3\); it needs 3 axes and a batch of 4": {"uncond": two.uncond},
        "prompts_negative has shape": {"negative": two.negative},
        r"negatives has shape \(2, 2, 1, 3\); it needs 4 axes": {"perp_neg": two.perp_neg},
        "weights of negatives has shape": {"perp_neg_weights": two.perp_neg_weights},
        "2 negatives and 1 weights": {"perp_neg_weights": torch.zeros(1, 1)},
    }
    for said, change in wrong.items():
        with pytest.raises(CarvError, match=said):
            cond._replace(**change).per_render(4)
