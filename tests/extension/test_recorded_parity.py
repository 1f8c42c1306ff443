"""The extension against what threestudio's own guidances gave (`recorded/`, by `record_parity.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import recorded_parity as recorded
import torch
from recorded_parity import deal, set_posterior
from safetensors.torch import load_file
from torch import Tensor

FACTS = recorded.facts()
TENSORS = load_file(recorded.TENSORS)
CLOSE = recorded.CLOSE


def test_the_model_is_the_recorded_one(folder: Path) -> None:
    assert recorded.fingerprint(folder) == FACTS["weights"]


@pytest.mark.parametrize(
    ("kind", "stock"),
    [("carv-stable-diffusion-guidance", "stable-diffusion-guidance"),
     ("carv-vsd-guidance", "stable-diffusion-vsd-guidance")],
)  # fmt: skip
def test_every_stock_option_has_its_stock_default(host: Any, kind: str, stock: str) -> None:
    config = vars(host.modules[kind].Config())
    assert {name: config[name] for name in FACTS[stock]} == FACTS[stock]


@pytest.mark.parametrize(("name", "given"), recorded.CASES)
def test_one_uniform_draw_gives_the_stock_gradient(
    name: str, given: str, host: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = f"{name}, {given}"
    guidance = recorded.one_draw_guidance(
        host, "carv-stable-diffusion-guidance", folder, guidance_scale=recorded.SCALE, **recorded.OPTIONS[name]
    )
    carv, rgb = guidance._carv, recorded.render(given)
    n = len(rgb)
    set_posterior(monkeypatch, carv.teacher.vae, recorded.gaussian("posterior", n, 4, 8, 8))
    t = torch.tensor(FACTS["cases"][case]["t"])
    deal(carv.estimator, t[:, None], recorded.gaussian("eps", n, 4, 8, 8)[:, None])
    utils = recorded.RecordedPrompts(TENSORS, n, "perp-neg" in given)
    out = guidance(rgb, utils, rgb_as_latents="latents" in given, **recorded.views(n))
    recorded.check_gradients(case, out, rgb, FACTS, TENSORS)


@pytest.mark.parametrize("case", recorded.VSD_OPTIONS)
def test_one_draw_gives_the_stock_gradients_of_vsd(
    case: str, host: Any, folder: Path, v_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, facts = recorded.VSD_OPTIONS[case], FACTS["cases"][case]
    guidance = recorded.one_draw_guidance(
        host, "carv-vsd-guidance", folder, pretrained_model_name_or_path_lora=str(v_folder), lora_max_batch=2, **options
    )
    parameters = dict(guidance.lora.named_parameters())
    for name, parameter in parameters.items():
        parameter.data = 0.3 * recorded.fill(name, *parameter.shape)
    carv, rgb, n = guidance._carv, recorded.render("images"), options.get("lora_n_timestamp_samples", 1)
    set_posterior(monkeypatch, carv.sds.teacher.vae, recorded.gaussian("posterior", 2, 4, 8, 8))
    deal(carv.sds.estimator, torch.tensor(facts["t"])[:, None], recorded.gaussian("eps", 2, 4, 8, 8)[:, None])
    # threestudio's has the renders along the faster axis
    t_lora = torch.tensor(facts["t_lora"]).view(n, 2).T
    eps_lora = recorded.gaussian("eps lora", n * 2, 4, 8, 8).view(n, 2, 4, 8, 8).transpose(0, 1)
    deal(carv.training.estimator, t_lora, eps_lora)
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.ones(*size))  # no camera is dropped
    views = {**recorded.views(2), "c2w": recorded.fill("c2w", 2, 4, 4), "mvp_mtx": recorded.fill("mvp_mtx", 2, 4, 4)}
    out = guidance(rgb, recorded.RecordedPrompts(TENSORS, 2), **views)

    recorded.check_gradients(case, out, rgb, FACTS, TENSORS)
    assert out["loss_lora"].item() == pytest.approx(facts["loss_lora"], rel=CLOSE)
    gradient = dict(zip(parameters, torch.autograd.grad(out["loss_lora"], list(parameters.values()))))
    products = {name: recorded.along(g, name) for name, g in gradient.items()}
    assert products == pytest.approx(facts["lora_gradient"], rel=CLOSE, abs=CLOSE * facts["lora_norm"])
    norm = sum(float(g.square().sum()) for g in gradient.values()) ** 0.5
    assert norm == pytest.approx(facts["lora_norm"], rel=CLOSE)


def test_previews_start_from_the_stock_noise(host: Any, folder: Path) -> None:
    """What follows is drawn anew by both; the noisy image, the noise level and the text are the same."""
    guidance = recorded.one_draw_guidance(host, "carv-stable-diffusion-guidance", folder, guidance_scale=recorded.SCALE)
    deal(guidance._carv.estimator, torch.tensor([[67]]), recorded.gaussian("eps", 1, 4, 8, 8)[:, None])
    utils, z = recorded.RecordedPrompts(TENSORS, 1), recorded.render("latents")[:1].detach()
    shown = guidance(z, utils, rgb_as_latents=True, guidance_eval=True, **recorded.views(1))["eval"]
    facts = FACTS["previews"]
    assert (shown["bs"], shown["texts"]) == (facts["bs"], facts["texts"])
    # its chain of timesteps ends at the scheduler's steps_offset, ours at 0
    assert shown["noise_levels"] == pytest.approx(facts["noise_levels"], abs=1.1e-3)
    assert {name: list(value.shape) for name, value in shown.items() if isinstance(value, Tensor)} == facts["shapes"]
    torch.testing.assert_close(shown["imgs_noisy"], TENSORS["previews: imgs_noisy"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("proposal", "stratify", "antithetic"),
    [("uniform", "none", False), ("weight", "render", True), ("adaptive", "global", False)],
)
def test_eight_draws_have_the_stock_mean(
    proposal: str, stratify: str, antithetic: bool, host: Any, folder: Path
) -> None:
    """The mean gradient of some steps, along the stock mean and seven other directions, within 4 standard errors."""
    options: dict[str, Any] = {"num_draws": 8, "proposal": proposal, "stratify": stratify, "antithetic": antithetic}
    options |= {"seed": 7, "guidance_scale": recorded.SCALE}
    guidance = recorded.one_draw_guidance(host, "carv-stable-diffusion-guidance", folder, **options)
    guidance.update_step(0, 0)
    z = recorded.gaussian("latents", 2, 8, 8, 4).requires_grad_()
    utils, steps = recorded.RecordedPrompts(TENSORS, 2), []
    for _ in range(20):
        out = guidance(z, utils, rgb_as_latents=True, **recorded.views(2))
        steps.append(torch.autograd.grad(out["loss_sds"], z)[0].flatten())
    x = torch.stack(steps) @ TENSORS["mean: directions"].T
    expected, error = (torch.tensor(FACTS["mean"][name]) for name in ("mean", "error"))
    assert float(expected[0] / error[0]) > 20  # there is a mean to be missed
    own_error = x.std(0) / len(x) ** 0.5
    z_scores = (x.mean(0) - expected).abs() / (error.square() + own_error.square()).sqrt()
    assert float(z_scores.max()) < 4, z_scores
    assert float(own_error[0]) < 0.3 * float(expected[0])
