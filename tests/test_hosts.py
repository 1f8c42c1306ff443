"""The patches of `examples/hosts`: their lines run in a double, and keep the loop's objective."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import host_loops as loops
import pytest
import torch
from torch import Tensor

from carv_3d import CarvEstimator, Draws, sds_loss
from carv_3d.errors import CarvError

R, SCALE = 2, 7.5
ROOT = loops.PATCHES.parents[1]
NAMES = sorted(loops.DOUBLES)
OPTIONS: dict[str, Callable[[int], Any]] = {  # of a user, for K draws
    "stable-dreamfusion": lambda K: ["--num_draws", str(K)],
    "dreamgaussian": lambda K: {"num_draws": K},
    "nerfstudio": lambda K: {"num_draws": K},
}


def images(seed: int = 0) -> Tensor:
    return torch.rand(R, 3, 4, 4, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def texts(count: int = 2) -> Tensor:
    """Embeddings (count, R, 3, 5), the unconditional ones first."""
    return torch.randn(4, R, 3, 5, generator=torch.Generator().manual_seed(1))[:count]


def loss(name: str, host: Any, rgb: Tensor, **more: Any) -> Any:
    """A step of the loop, called as the repository calls it."""
    e = texts()
    if name == "dreamgaussian":
        host.embeddings = {"neg": e[0], "pos": e[1]}
        return host.train_step(rgb, guidance_scale=SCALE, **more)
    if name == "nerfstudio":
        return host.sds_loss(e.flatten(0, 1), rgb, guidance_scale=SCALE, **more)
    return host.train_step(e.flatten(0, 1), rgb, guidance_scale=SCALE, grad_scale=0.3, **more)


def convention(name: str) -> tuple[float, float]:
    """The s of uncond + s (text - uncond), and the factor of the loss."""
    return {"nerfstudio": (SCALE + 1, 1.0), "dreamgaussian": (SCALE, 1.0), "stable-dreamfusion": (SCALE, 0.3)}[name]


def reference(host: Any, rgb: Tensor, t: Tensor, eps: Tensor, guided: Callable[[Tensor], Tensor], factor: float) -> Any:
    """The gradient of a stock step with these draws (R,), written as the loops write it."""
    z = host.encode_imgs(rgb)
    abar = loops.ALPHAS[t].view(-1, 1, 1, 1)
    z_t = abar.sqrt() * z.detach() + (1 - abar).sqrt() * eps
    predicted = torch.stack([host.unet(z_t, t, e).sample for e in texts(4)])
    grad = factor * (1 - abar) * (guided(predicted) - eps)
    target = (z - grad).detach()
    stock = 0.5 * torch.nn.functional.mse_loss(z, target, reduction="sum") / R
    return torch.autograd.grad(stock, rgb)[0]


def plain(s: float) -> Callable[[Tensor], Tensor]:
    return lambda e: e[0] + s * (e[1] - e[0])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Draws]:
    """Every layout of draws from here on."""
    kept: list[Draws] = []
    draw = CarvEstimator.draw

    def recorded(*args: Any, **kwargs: Any) -> Draws:
        kept.append(draw(*args, **kwargs))
        return kept[-1]

    monkeypatch.setattr(CarvEstimator, "draw", recorded)
    return kept


def made(name: str, K: int, **more: Any) -> Any:
    """The double's guidance for K draws; `more` replaces options of `sds_loss`."""
    names = loops.double(name)
    names["sds_loss"] = partial(sds_loss, **more)
    return names["main"](OPTIONS[name](K))


@pytest.mark.parametrize("name", NAMES)
def test_a_patch_changes_at_most_30_lines(name: str) -> None:
    text = (loops.PATCHES / f"{name}.patch").read_text()
    changed = [line for line in text.splitlines() if re.match(r"[+-](?!\+\+ |-- )", line)]
    assert 10 < len(changed) <= 30
    assert not any(line.startswith("-") for line in changed)  # the stock step stays, for num_draws 0
    around = [line for line in text.splitlines() if line.startswith(" ")]
    assert len(around) <= 2 * text.count("\n@@ ")


@pytest.mark.parametrize("name", NAMES)
def test_with_one_uniform_draw_the_gradient_is_the_loops_own(name: str, drawn: list[Draws]) -> None:
    host, rgb = made(name, 1, proposal="uniform", stratify="none"), images()
    (got,) = torch.autograd.grad(loss(name, host, rgb), rgb)
    (draws,) = drawn
    s, factor = convention(name)
    expected = reference(host, rgb, draws.t[:, 0], draws.eps[:, 0], plain(s), factor)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def test_perp_neg_keeps_each_items_negatives(drawn: list[Draws]) -> None:
    host, rgb = made("stable-dreamfusion", 1, proposal="uniform", stratify="none"), images()
    weights = torch.tensor([[1.0, 1.0], [-1.5, -0.3], [0.0, -0.8]])  # (M, R)
    e = texts(4).flatten(0, 1)
    stock = host.train_step_perpneg(e, weights.flatten(), rgb, guidance_scale=SCALE, grad_scale=2.0)
    (got,) = torch.autograd.grad(stock, rgb)

    def guided(e: Tensor) -> Tensor:
        delta = (e[1:] - e[0]).flatten(0, 1)
        return e[0] + SCALE * loops.perp_neg(delta, weights.flatten(), R)

    expected = reference(host, rgb, drawn[0].t[:, 0], drawn[0].eps[:, 0], guided, 2.0)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_eight_draws_take_one_encoding_and_one_backward(name: str) -> None:
    host, rgb = made(name, 8), images()
    backwards: list[Tensor] = []
    encode = host.encode_imgs

    def watched(x: Tensor) -> Tensor:
        z = encode(x)
        z.register_hook(backwards.append)
        return z

    host.encode_imgs = watched
    loss(name, host, rgb).backward()
    assert host.encoded == 1
    assert len(backwards) == 1
    assert sum(host.unet.samples) == R * 8 * 2


@pytest.mark.parametrize("name", NAMES)
def test_eight_draws_are_unbiased_for_the_loops_objective(name: str) -> None:
    """The model is linear, so E f = w(t) (a alpha z + b c wave), the mean over the host's own range of timesteps."""
    torch.manual_seed(3)
    host, rgb = made(name, 8), images()
    host.min_step, host.max_step = 100, 600  # what the loop has set counts at every call
    got = torch.stack([torch.autograd.grad(loss(name, host, rgb), rgb)[0].flatten() for _ in range(300)])
    steps, (s, factor) = torch.arange(100, 601), convention(name)
    z = host.encode_imgs(rgb)
    total = torch.zeros_like(z)
    for t in steps:
        now, abar = t.expand(R), loops.ALPHAS[t]
        e = [host.unet(abar.sqrt() * z.detach(), now, each).sample for each in texts()]
        total += factor * (1 - abar) * (e[0] + s * (e[1] - e[0])) / len(steps)
    (expected,) = torch.autograd.grad((z * total.detach()).sum() / R, rgb)
    away = (got.mean(0) - expected.flatten()) / (got.std(0) / len(got) ** 0.5)
    assert float(away.abs().max()) < 4.5  # the largest of 96
    assert float(expected.abs().max()) > 8 * float(got.std(0).max()) / len(got) ** 0.5  # enough to see a bias


@pytest.mark.parametrize("name", NAMES)
def test_without_draws_the_stock_step_runs(name: str) -> None:
    assert loss(name, made(name, 0), images()) == "stock"
    assert isinstance(loss(name, made(name, 4), images()), Tensor)


def test_stable_dreamfusions_own_step_draws_the_saved_images() -> None:
    host = made("stable-dreamfusion", 4)
    assert loss("stable-dreamfusion", host, images(), save_guidance_path="guidance.png") == "stock"
    weights = torch.ones(R)
    given = (texts().flatten(0, 1), weights, images())
    assert host.train_step_perpneg(*given, save_guidance_path="guidance.png") == "stock"


@pytest.mark.parametrize("name", ["stable-dreamfusion", "dreamgaussian"])
def test_latents_are_taken_as_they_are(name: str) -> None:
    host = made(name, 4)
    rgb = torch.rand(R, 4, 2, 2).requires_grad_()
    loss(name, host, rgb, as_latent=True).backward()
    assert host.encoded == 0
    assert rgb.grad is not None


def test_dreamgaussians_annealed_timestep_is_kept(drawn: list[Draws]) -> None:
    host, rgb = made("dreamgaussian", 4), images()
    for ratio, expected in ((0.0, 980), (0.25, 750), (1.0, 20)):
        loss("dreamgaussian", host, rgb, step_ratio=ratio)
        draws = drawn[-1]
        assert draws.weights is not None
        assert draws.t.unique().tolist() == [expected]
        assert draws.weights.unique().tolist() == [1.0]
        assert len(draws.eps.flatten(0, 1).unique(dim=0)) == R * 4  # the noise is drawn anew


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_number_of_draws_is_one_sentence(name: str) -> None:
    with pytest.raises(CarvError, match="num_draws is -1"):
        loss(name, made(name, -1), images())
