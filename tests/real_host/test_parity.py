"""The extension and threestudio's own guidance, in one process: the same gradient for the same draws, the same mean.

Both guidances load the same random weights.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_parity import OPTIONS
from torch import Tensor

from carv_3d.core.estimator import Draws

STOCK, OURS = "stable-diffusion-guidance", "carv-stable-diffusion-guidance"
ONE_DRAW = {"num_draws": 1, "proposal": "uniform", "stratify": "none"}


@pytest.fixture
def prompts(threestudio: Any, sd_folder_512: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """threestudio's own prompt processor, by whether it uses Perp-Neg."""
    monkeypatch.chdir(tmp_path)

    def build(perp_neg: bool = False, folder: Path = sd_folder_512) -> Any:
        cfg: dict[str, Any] = {"pretrained_model_name_or_path": str(folder), "prompt": "a mug"}
        cfg.update(negative_prompt="bad", spawn=False, use_perp_neg=perp_neg)
        return threestudio.find("stable-diffusion-prompt-processor")(cfg)()

    return build


@pytest.fixture
def both(threestudio: Any, sd_folder_512: Path) -> Any:
    """(stock, ours) with the same options, and ours with those of ONE_DRAW or others."""

    def build(
        options: dict[str, Any], ours: dict[str, Any] = ONE_DRAW, folder: Path = sd_folder_512
    ) -> tuple[Any, Any]:
        from omegaconf import OmegaConf

        cfg = {"pretrained_model_name_or_path": str(folder), "half_precision_weights": False, **options}
        # as from a YAML file: threestudio takes a schedule for a number from there, and not from a dict
        return threestudio.find(STOCK)(OmegaConf.create(cfg)), threestudio.find(OURS)(OmegaConf.create({**cfg, **ours}))

    return build


def batch(n: int) -> dict[str, Tensor]:
    azimuth = torch.tensor([30.0, 100.0, -150.0])[:n]
    return {"elevation": torch.full((n,), 15.0), "azimuth": azimuth, "camera_distances": torch.full((n,), 1.8)}


def gradients(out: dict[str, Any], rgb: Tensor) -> dict[str, Tensor]:
    losses = {name: loss for name, loss in out.items() if name.startswith("loss_")}
    return {name: torch.autograd.grad(loss, rgb, retain_graph=True)[0] for name, loss in losses.items()}


CASES = {name: options for name, options in OPTIONS.items() if name != "sds without var_red"}


PLAIN = [(case, False, False) for case in CASES]
LATENTS = [(case, True, False) for case in ("sds", "sjc", "clipped")]
PERP_NEG = [(case, False, True) for case in CASES if case not in ("annealed", "one prompt for all views")]


@pytest.mark.parametrize(("case", "latents", "perp_neg"), [*PLAIN, *LATENTS, *PERP_NEG, ("sjc", True, True)])
def test_one_uniform_draw_gives_the_stock_gradient(
    case: str, latents: bool, perp_neg: bool, prompts: Any, both: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 1 if perp_neg else 2  # threestudio's Perp-Neg is wrong for more than one item
    stock, ours = both({"guidance_scale": 20.0, **CASES[case]})
    for guidance in (stock, ours):
        guidance.update_step(0, 400)
    source = torch.Generator().manual_seed(3)
    rgb = torch.rand(n, 64, 64, 4 if latents else 3, generator=source).requires_grad_()
    eps, posterior = (torch.randn(n, 4, 64, 64, generator=source) for _ in range(2))
    t = torch.randint(stock.min_step, stock.max_step + 1, (n,), generator=source)
    kind = type(stock.vae.encode(torch.zeros(1, 3, 16, 16)).latent_dist)
    monkeypatch.setattr(kind, "sample", lambda self, generator=None: self.mean + self.std * posterior)
    utils = prompts(perp_neg)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", lambda *_, **__: t)
        patch.setattr(torch, "randn_like", lambda *_, **__: eps)
        expected = stock(rgb, utils, rgb_as_latents=latents, **batch(n))
    monkeypatch.setattr(ours._carv.estimator, "draw", lambda *_, **__: Draws(t[:, None], eps[:, None]))
    actual = ours(rgb, utils, rgb_as_latents=latents, **batch(n))

    assert (actual["min_step"], actual["max_step"]) == (stock.min_step, stock.max_step)
    assert actual["grad_norm"] == pytest.approx(expected["grad_norm"].item(), rel=1e-5)
    expected, got = gradients(expected, rgb), gradients(actual, rgb)
    assert set(got) == set(expected)
    for name, gradient in expected.items():
        size = float(gradient.abs().max())
        assert size > 0
        # threestudio's loss rounds its gradient to the last bits of the latents, which is seen where the clip is small
        assert float((got[name] - gradient).abs().max()) < 1e-4 * size, name
        assert float((got[name] - gradient).norm() / gradient.norm()) < 5e-5, name


def test_the_images_of_guidance_eval_start_from_the_same_noise(
    prompts: Any, both: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows is drawn anew by both; the noisy image, the noise level and its text are the same."""
    stock, ours = both({"guidance_scale": 20.0})
    source = torch.Generator().manual_seed(3)
    z, eps = (torch.randn(1, 4, 64, 64, generator=source) for _ in range(2))
    rgb, t, utils = z.permute(0, 2, 3, 1), torch.tensor([67]), prompts()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", lambda *_, **__: t)
        patch.setattr(torch, "randn_like", lambda *_, **__: eps)
        expected = stock(rgb, utils, rgb_as_latents=True, guidance_eval=True, **batch(1))["eval"]
    monkeypatch.setattr(ours._carv.estimator, "draw", lambda *_, **__: Draws(t[:, None], eps[:, None]))
    actual = ours(rgb, utils, rgb_as_latents=True, guidance_eval=True, **batch(1))["eval"]
    assert set(actual) == set(expected)
    assert (actual["bs"], actual["texts"]) == (expected["bs"], expected["texts"])
    # its chain of timesteps ends at the scheduler's steps_offset, ours at 0
    assert actual["noise_levels"] == pytest.approx([float(level) for level in expected["noise_levels"]], abs=1.1e-3)
    for name in ("imgs_noisy", "imgs_1step", "imgs_1orig", "imgs_final"):
        assert actual[name].shape == expected[name].shape
    torch.testing.assert_close(actual["imgs_noisy"], expected["imgs_noisy"], atol=1e-5, rtol=1e-4)


def test_a_stock_configuration_is_accepted_as_it_is(threestudio: Any) -> None:
    stock, ours = (threestudio.find(name).Config() for name in (STOCK, OURS))
    for name, value in vars(stock).items():
        assert getattr(ours, name) == value, name


DESIGNS = [
    (proposal, stratify, antithetic)
    for proposal in ("uniform", "weight", "adaptive")
    for stratify in ("none", "render", "global")
    for antithetic in (False, True)
]
SEEDS = 60


@pytest.fixture
def small(threestudio: Any, build_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with latents of 8, which threestudio's guidance (it writes 64 out) leaves as they are."""
    from threestudio.models.guidance import stable_diffusion_guidance as module

    unchanged = types.SimpleNamespace(**{**vars(torch.nn.functional), "interpolate": lambda x, *_, **__: x})
    monkeypatch.setattr(module, "F", unchanged)
    return build_folder(tmp_path / "small", context=77)


def test_eight_draws_have_the_stock_mean_whatever_the_design(prompts: Any, both: Any, small: Path) -> None:
    """The mean gradient of many seeds, along its own direction and along some others, within 4 standard errors."""
    n, utils = 2, prompts(folder=small)
    source = torch.Generator().manual_seed(0)
    rgb = torch.randn(n, 8, 8, 4, generator=source).requires_grad_()

    def gradient(guidance: Any) -> Tensor:
        return gradients(guidance(rgb, utils, rgb_as_latents=True, **batch(n)), rgb)["loss_sds"].flatten().double()

    stock, _ = both({"guidance_scale": 20.0}, folder=small)
    stock.decode_latents = lambda latents: torch.zeros(1)  # decoded in every step and not used here
    with torch.random.fork_rng():
        torch.manual_seed(1)
        drawn = torch.stack([gradient(stock) for _ in range(1500)])
    along = drawn[:300].mean(0)  # chosen from draws that are not looked at again
    others = torch.randn(7, along.numel(), generator=source, dtype=torch.float64)
    directions = torch.cat([along[None], others]).T
    directions = directions / directions.norm(dim=0)

    def mean_and_error(gradients_: Tensor) -> tuple[Tensor, Tensor]:
        x = gradients_ @ directions
        return x.mean(0), x.std(0) / len(x) ** 0.5

    expected, error = mean_and_error(drawn[300:])
    assert float(expected[0] / error[0]) > 20  # there is a mean to be missed
    for proposal, stratify, antithetic in DESIGNS:
        _, ours = both(
            {"guidance_scale": 20.0},
            {"num_draws": 8, "proposal": proposal, "stratify": stratify, "antithetic": antithetic, "seed": 7},
            small,
        )
        mean, its_error = mean_and_error(torch.stack([gradient(ours) for _ in range(SEEDS)]))
        z = (mean - expected).abs() / (error.square() + its_error.square()).sqrt()
        assert float(z.max()) < 4, (proposal, stratify, antithetic, z)
        assert float(its_error[0]) < 0.2 * float(expected[0])
