"""The Zero123 guidances against what threestudio's own gave (`recorded/`, by `record_zero123.py`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import compvis_models
import pytest
import recorded_parity as recorded
import recorded_zero123 as zero123
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FACTS = recorded.facts(zero123.FACTS)
TENSORS = load_file(zero123.TENSORS)
PACKAGE = "extern.ldm_zero123"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return compvis_models.write_zero123(tmp_path_factory.mktemp("zero123"))


@pytest.fixture
def make(host: Any, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    compvis_models.install(PACKAGE, monkeypatch)

    def build(kind: str, **options: Any) -> Any:
        guidance = host.modules[f"carv-{kind}"]({**files, "seed": 0, **options})
        guidance.update_step(0, recorded.STEP)
        return guidance

    return build


@pytest.mark.parametrize("kind", zero123.KINDS)
def test_every_stock_option_has_its_stock_default(kind: str, host: Any) -> None:
    config = vars(host.modules[f"carv-{kind}"].Config())
    assert {name: config[name] for name in FACTS[kind]} == FACTS[kind]


@pytest.mark.parametrize(("kind", "name", "given"), zero123.CASES)
def test_one_uniform_draw_gives_the_stock_gradient(
    kind: str, name: str, given: str, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = zero123.case_name(kind, name, given)
    guidance = make(kind, **recorded.ONE_DRAW, **zero123.OPTIONS[name])
    rgb = zero123.render(given)
    eps, posterior = zero123.noise(len(rgb))
    recorded.deal(guidance._carv.estimator, torch.tensor(FACTS["cases"][case]["t"])[:, None], eps[:, None])
    monkeypatch.setattr(torch, "randn", lambda *_, **__: posterior)
    out = guidance(rgb, **recorded.views(len(rgb)), rgb_as_latents="latents" in given)
    recorded.check_gradients(case, out, rgb, FACTS, TENSORS)


def test_the_cases_differ() -> None:
    gradients = [(case, gradient) for case, gradient in TENSORS.items() if "images" in case]
    for i, (case, a) in enumerate(gradients):
        same = [other for other, b in gradients[:i] if torch.allclose(a, b, rtol=1e-2)]
        assert not same, (case, same)


def gradients(guidance: Any, copies: int, steps: int = 1) -> Tensor:
    """(copies steps, numbers): of two renders in latents, as many copies of the two in one batch."""
    z = (recorded.gaussian("latents", 2, 8, 8, 4) / 2).repeat(copies, 1, 1, 1).requires_grad_()
    views = {name: view.repeat(copies) for name, view in recorded.views(2).items()}
    losses = (guidance(z, **views, rgb_as_latents=True)["loss_sds"] for _ in range(steps))
    return torch.cat([copies * torch.autograd.grad(loss, z)[0].reshape(copies, -1) for loss in losses])


@pytest.mark.parametrize(
    ("proposal", "stratify", "antithetic"),
    [("uniform", "none", False), ("weight", "render", True), ("adaptive", "global", False)],
)
def test_eight_draws_have_the_mean_of_one(
    proposal: str, stratify: str, antithetic: bool, make: Callable[..., Any]
) -> None:
    """Along the mean of one draw and seven other directions, within 4 standard errors."""
    options = {"guidance_scale": 20.0, "max_batch": 512}
    single = gradients(make("zero123-guidance", **recorded.ONE_DRAW, **options), 600)
    design = {"proposal": proposal, "stratify": stratify, "antithetic": antithetic, "num_draws": 8, "seed": 5}
    # global strata tie the renders of a step together
    eight = gradients(make("zero123-guidance", **design, **options), *((1, 50) if stratify == "global" else (50, 1)))
    directions = torch.cat([single[:100].mean(0, keepdim=True), zero123.directions()])
    a, b = (x @ (directions / directions.norm(dim=1, keepdim=True)).T for x in (single[100:], eight))
    errors = [x.std(0) / len(x) ** 0.5 for x in (a, b)]
    assert float(a.mean(0)[0] / errors[0][0]) > 10  # there is a mean to be missed
    z_scores = (a.mean(0) - b.mean(0)).abs() / (errors[0].square() + errors[1].square()).sqrt()
    assert float(z_scores.max()) < 4, z_scores


def test_eight_draws_cost_one_encoding_and_one_backward(
    make: Callable[..., Any], rgb: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    guidance = make("stable-zero123-guidance", num_draws=8)
    model, calls = guidance._teacher.network, {"encode": 0, "unet": 0, "backward": 0}
    encode, apply_model = model.first_stage_model.encode, model.apply_model

    def count(name: str, n: int) -> None:
        calls[name] += n

    monkeypatch.setattr(model.first_stage_model, "encode", lambda x: (count("encode", len(x)), encode(x))[1])
    monkeypatch.setattr(model, "apply_model", lambda x, t, cond: (count("unet", len(x)), apply_model(x, t, cond))[1])
    model.first_stage_model.encoder.register_full_backward_hook(lambda *_: count("backward", 1))
    out = guidance(rgb, **recorded.views(2))
    out["loss_sds"].backward()
    assert calls == {"encode": 2, "unet": 2 * 2 * 8, "backward": 1}
    assert out["K"] == 8


def test_weights_may_be_safetensors_and_running_means_absent(
    make: Callable[..., Any], files: dict[str, str], tmp_path: Path, rgb: Tensor
) -> None:
    whole = torch.load(files["pretrained_model_name_or_path"], weights_only=True)["state_dict"]
    means = {name: value for name, value in whole.items() if name.startswith("model_ema.")}
    save_file(whole, tmp_path / "whole.safetensors")
    save_file({name: whole[name] for name in whole if name not in means}, tmp_path / "plain.safetensors")
    networks = [
        make("zero123-guidance", pretrained_model_name_or_path=path)._teacher.network.model.state_dict()
        for path in (
            files["pretrained_model_name_or_path"],
            *(f"{tmp_path}/{name}.safetensors" for name in ("whole", "plain")),
        )
    ]
    for name, value in networks[0].items():
        assert torch.equal(value, means["model_ema." + name.replace(".", "")])
        assert torch.equal(networks[1][name], value)
        assert torch.equal(networks[2][name], whole[f"model.{name}"])


def test_previews_are_of_each_render(make: Callable[..., Any], rgb: Tensor) -> None:
    guidance = make("zero123-guidance", vram_O=False, max_items_eval=1, num_draws=2)
    shown = guidance(rgb, **recorded.views(2), guidance_eval=True)["eval"]
    assert (shown["bs"], len(shown["texts"]), tuple(shown["imgs_final"].shape)) == (1, 1, (1, 16, 16, 3))
    assert shown["texts"][0].endswith("e15.0\na30.0\nc1.80")
