"""The exact teacher against autograd of the log-density, its closed form, and plain averaging."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact import sds_gradient

from carv_3d.errors import CarvError
from carv_3d.teachers.base import Teacher
from carv_3d.teachers.gaussian import GaussianTeacher

G = torch.Generator().manual_seed(0)
MEANS = torch.randn(3, 3, 2, 2, generator=G, dtype=torch.float64)
Z = torch.randn(2, 3, 2, 2, generator=G, dtype=torch.float64)


@pytest.fixture
def teacher() -> GaussianTeacher:
    return GaussianTeacher(MEANS, std=0.4, names=["mug", "chair", "duck"], image_size=8)


def test_it_keeps_the_protocol(teacher: GaussianTeacher) -> None:
    assert isinstance(teacher, Teacher)


def test_eps_hat_is_the_score(teacher: GaussianTeacher) -> None:
    t = torch.tensor([50, 700])
    text = teacher.text_embeddings(["a duck", ""])
    z_t = Z.clone().requires_grad_()
    alpha, sigma = (x.double() for x in (teacher.schedule.alpha(t), teacher.schedule.sigma(t)))
    v = (alpha * 0.4) ** 2 + sigma**2
    away = (z_t.flatten(1)[:, None] - alpha[:, None, None] * MEANS.flatten(1)).square().sum(-1)
    log_p = torch.logsumexp(text[:, 0] - away / (2 * v[:, None]), 1)
    (score,) = torch.autograd.grad(log_p.sum(), z_t)
    torch.testing.assert_close(teacher.eps_hat(Z, t, text), -sigma[:, None, None, None] * score)


def test_single_component_is_closed_form() -> None:
    teacher = GaussianTeacher(MEANS[:1], std=0.4)
    t = torch.arange(20, 981)
    abar = teacher.schedule.alphas_cumprod[t].double()
    factor = ((1 - abar) * ((1 - abar) * abar).sqrt() / (abar * 0.16 + 1 - abar)).mean()
    got = sds_gradient(teacher, Z, torch.zeros(2, 1, 1).double())
    torch.testing.assert_close(got, factor * (Z - MEANS[:1]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("step", [30, 300, 900])
def test_expectation_agrees_with_averaging_and_with_more_nodes(teacher: GaussianTeacher, step: int) -> None:
    text = teacher.text_embeddings(["mug chair"])
    t = torch.tensor([step])
    got = teacher.expected_eps_hat(Z[:1], t, text)
    finer = teacher.expected_eps_hat(Z[:1], t, text, nodes=70)
    torch.testing.assert_close(got, finer, atol=1e-5, rtol=0)
    n = 50_000
    eps = torch.randn(n, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    eps = torch.cat([eps, -eps])
    tt = t.expand(2 * n)
    sample = teacher.eps_hat(teacher.schedule.add_noise(Z[:1].expand_as(eps), eps, tt), tt, text.expand(2 * n, 1, 3))
    pairs = (sample[:n] + sample[n:]) / 2
    error = pairs.std(0) / n**0.5 + 1e-9
    assert float(((pairs.mean(0) - got[0]) / error).abs().max()) < 4


def test_images_and_latents(teacher: GaussianTeacher) -> None:
    latents = (torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(2)) * 2 - 1).requires_grad_()
    images = teacher.decode(latents)
    assert images.shape == (2, 3, 8, 8)
    torch.testing.assert_close(teacher.encode(images), latents)
    x = torch.rand(1, 3, 8, 8, requires_grad=True)
    teacher.encode(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 2 / 16))


def test_mistakes_are_named(teacher: GaussianTeacher) -> None:
    with pytest.raises(CarvError, match="names none of: mug, chair, duck"):
        teacher.text_embeddings(["a hamburger"])
    with pytest.raises(CarvError, match=r"\(M, C, n, n\)"):
        GaussianTeacher(torch.ones(2, 3))
    with pytest.raises(CarvError, match="no multiple"):
        GaussianTeacher(MEANS, image_size=7)
    for size in (8.0, True, "8"):
        with pytest.raises(CarvError, match=r"image_size is .*; it must be a whole number, or None"):
            GaussianTeacher(MEANS, image_size=size)  # type: ignore[arg-type]
    for means in (MEANS.long(), MEANS.half(), MEANS.to(torch.complex64)):
        with pytest.raises(CarvError, match=r"means are of type torch\..*; they must be float32 or float64"):
            GaussianTeacher(means)
    for value in (float("nan"), float("inf")):
        with pytest.raises(CarvError, match="means hold NaN or infinity"):
            GaussianTeacher(MEANS.index_fill(0, torch.tensor([1]), value))
    with pytest.raises(CarvError, match="prompts is an empty list; it must hold one text at least"):
        teacher.text_embeddings([])
    with pytest.raises(CarvError, match=r"prompts is 'mug'; it must be a list of texts: \['mug'\]"):
        teacher.text_embeddings("mug")
    with pytest.raises(CarvError, match="names is 'abc'; it must be a list of texts"):
        GaussianTeacher(MEANS, names="abc")
    with pytest.raises(CarvError, match="names has 'a' twice; each component has a name of its own"):
        GaussianTeacher(MEANS, names=["a", "b", "a"])
    with pytest.raises(CarvError, match="means are without data; they must be a dense tensor"):
        GaussianTeacher(MEANS.to("meta"))
    with pytest.raises(CarvError, match="span 4"):
        GaussianTeacher(torch.randn(5, 3, 2, 2, dtype=torch.float64)).expected_eps_hat(
            Z[:1], torch.tensor([5]), torch.zeros(1, 1, 5)
        )


IMAGES = torch.rand(2, 3, 8, 8, generator=G)
NO_NUMBERS: list[tuple[Any, str]] = [
    ("a", "'a'; .* must be a torch tensor"),
    (None, "None; .* must be a torch tensor"),
    (Z.to(torch.complex64), "of type torch.complex64; .* must be floating-point numbers"),
    (Z.long(), "of type torch.int64"),
    (Z.to("meta"), "without data; .* must be a dense tensor"),
    (Z.to_sparse(), "torch.sparse_coo; .* must be a dense tensor"),
]
SHAPES = "do not fit; they must be .N, C, h, w., .N,. and .N, L, D."
T, TEXT = torch.tensor([5, 6]), torch.zeros(2, 1, 3)
CALLS: list[tuple[str, tuple[Any, ...], str]] = [
    *(("encode", (value,), f"images are {said}") for value, said in NO_NUMBERS),
    *(("decode", (value,), f"latents are {said}") for value, said in NO_NUMBERS),
    *(("eps_hat", (value, T, TEXT), f"z_t is {said}") for value, said in NO_NUMBERS),
    *(("eps_hat", (Z, T, value), f"text_emb is {said}") for value, said in NO_NUMBERS),
    *(("encode", (x,), r"encode takes images \(B, 3, H, W\), not") for x in (IMAGES[:, :2], IMAGES[:0], IMAGES[0])),
    *(("decode", (z,), r"decode takes latents \(B, 3, h, w\), not") for z in (Z[:, :2], Z[:0], Z[0])),
    *(("eps_hat", (Z, t, TEXT), SHAPES) for t in (torch.tensor(5), torch.tensor([5, 6, 7]), T[None])),
    *(("eps_hat", (z, T, TEXT), SHAPES) for z in (Z[0], Z[:0], Z[:1])),
    ("eps_hat", (Z, T, TEXT[:1]), SHAPES),
    ("eps_hat", (Z, [5, 6], TEXT), r"t is a list; it must be a torch tensor \(N,\)"),
    ("eps_hat", (Z.reshape(2, 12, 1, 1), T, TEXT), r"z_t .* not this teacher's; .* \(N, 3, 2, 2\) and \(N, 1, 3\)"),
    ("eps_hat", (Z, T, TEXT[..., :2]), r"text_emb \(2, 1, 2\) are not this teacher's"),
    ("expected_eps_hat", (Z, torch.tensor(5), TEXT), SHAPES),
]


@pytest.mark.parametrize(("method", "given", "said"), CALLS)
def test_tensors_of_other_kinds_and_shapes_are_named(
    teacher: GaussianTeacher, method: str, given: tuple[Any, ...], said: str
) -> None:
    with pytest.raises(CarvError, match=said):
        getattr(teacher, method)(*given)


def test_what_is_written_to_the_means_later_changes_no_teacher() -> None:
    means = torch.zeros(1, 4, 4, 4)
    teacher = GaussianTeacher(means)
    means.fill_(1.0)
    assert not teacher.means.any()


def test_samples_have_the_mixtures_moments() -> None:
    means = torch.tensor([[1.0, 0.0], [-3.0, 2.0]]).view(2, 2, 1, 1)
    teacher = GaussianTeacher(means, std=0.5, names=["a", "b"])
    n, pi = 20_000, torch.tensor([0.98, 0.02])
    text = teacher.text_embeddings(["a"]).expand(n, -1, -1)
    z = teacher.sample(text, torch.Generator().manual_seed(0)).flatten(1)
    mu = pi @ means.flatten(1)
    cov = (means.flatten(1) - mu).T @ (pi[:, None] * (means.flatten(1) - mu)) + 0.25 * torch.eye(2)
    assert ((z.mean(0) - mu).abs() < 4 * (cov.diagonal() / n).sqrt()).all()
    torch.testing.assert_close(torch.cov(z.T), cov, atol=0.03, rtol=0)
