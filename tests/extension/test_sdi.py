"""`carv-stable-diffusion-sdi-guidance`, also against what threestudio's own gave (`record_sdi.py`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import host_double as double
import pytest
import recorded_parity as recorded
import recorded_sdi as sdi
import torch
from safetensors.torch import load_file
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.guidance.sdi import SDIOptions
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher

KIND = "carv-stable-diffusion-sdi-guidance"
FACTS = recorded.facts(sdi.FACTS)
TENSORS = load_file(sdi.TENSORS)
TEXTS = load_file(recorded.TENSORS)


def make(host: Any, folder: Path, **options: Any) -> Any:
    return recorded.one_draw_guidance(host, KIND, folder, **options)


def deal(guidance: Any, case: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the guidance draw what threestudio's own drew: t, delta, and the noise of each step of the inversion."""
    carv, facts, noise = guidance._carv, FACTS["cases"][case], sdi.noise(n)
    t = torch.tensor(facts["t"])
    T, steps = carv.teacher.schedule.num_train_timesteps, carv.options.inversion_n_steps
    monkeypatch.setattr(carv, "_delta", lambda *_: torch.tensor([[int(facts["u"] * T // steps)]]))
    own = sum(s < int(t[0]) for s in carv.grid.timesteps[1:]) if carv.grid else 0  # the index of the draw's own step
    recorded.deal(carv.estimator, t[:, None], noise[own][:, None])
    chain = iter(noise)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: next(chain))
    recorded.set_posterior(monkeypatch, carv.teacher.vae, recorded.gaussian("posterior", n, 4, 8, 8))


@pytest.mark.parametrize(("name", "given"), sdi.CASES)
def test_one_draw_gives_the_stock_gradient(
    name: str, given: str, host: Any, folder: Path, v_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = f"{name}, {given}"
    guidance = make(host, folder, guidance_scale=recorded.SCALE, **sdi.options(name, str(v_folder)))
    rgb = sdi.render(given)
    deal(guidance, case, len(rgb), monkeypatch)
    utils = recorded.RecordedPrompts(TEXTS, len(rgb), "perp-neg" in given)
    out = guidance(rgb, utils, **recorded.views(len(rgb)))
    recorded.check_gradients(case, out, rgb, FACTS, TENSORS)


def test_what_a_validation_shows_is_the_stocks(host: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guidance = make(host, folder, guidance_scale=recorded.SCALE, **sdi.OPTIONS["drawn"])
    deal(guidance, "drawn, images", 1, monkeypatch)
    with torch.no_grad():
        rgb = sdi.render("images").detach()
        out = guidance(rgb, recorded.RecordedPrompts(TEXTS, 1), test_info=True, **recorded.views(1))
    for name in ("target", "target_latent", "noisy_img", "noise_pred"):
        expected = TENSORS[f"info: {name}"]
        assert out[name].shape == expected.shape
        assert float((out[name] - expected).abs().max()) < 1e-4 * float(expected.abs().max()), name
    assert out["noise_img"].shape == (16, 16, 3)
    assert (out["nfe"], out["renders"]) == (0, 0)  # a validation is not counted


def test_a_noise_that_is_given_is_taken(host: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, noise = "defined noise, images", recorded.gaussian("defined", 1, 4, 8, 8)
    for draws in (1, 2):  # the same noise for each draw
        guidance = make(host, folder, guidance_scale=recorded.SCALE, num_draws=draws, **sdi.DRAWN)
        recorded.set_posterior(monkeypatch, guidance._carv.teacher.vae, recorded.gaussian("posterior", 1, 4, 8, 8))
        t = torch.tensor([FACTS["cases"][case]["t"] * draws])
        recorded.deal(guidance._carv.estimator, t, torch.zeros(1, draws, 4, 8, 8))
        rgb = sdi.render("images")
        views = {**recorded.views(1), "call_with_defined_noise": noise}
        out = guidance(rgb, recorded.RecordedPrompts(TEXTS, 1), **views)
        recorded.check_gradients(case, out, rgb, FACTS, TENSORS)


def test_every_stock_option_has_its_stock_default(host: Any) -> None:
    config = vars(host.modules[KIND].Config())
    assert {name: config[name] for name in FACTS[sdi.KIND]} == FACTS[sdi.KIND]


OTHER: dict[str, Any] = {
    "guidance_scale": 7.5, "min_step_percent": 0.1, "max_step_percent": [0, 0.9, 0.5, 100], "trainer_max_steps": 10,
    "half_precision_weights": False, "enable_sdi": False, "inversion_guidance_scale": 1.0, "inversion_n_steps": 7,
    "inversion_eta": 0.0, "t_anneal": False,
}  # fmt: skip
LOADED = {
    "enable_sequential_cpu_offload": "cpu_offload", "enable_attention_slicing": "attention_slicing",
    "enable_channels_last_format": "channels_last",
}  # fmt: skip
PART = "is no part of score distillation via inversion: leave it out"
REFUSED = {
    "weighting_strategy": ("uniform", "weighting_strategy is 'uniform', which score distillation via inversion does"),
    "use_img_loss": (True, f"use_img_loss {PART}"),
    "grad_clip": (0.5, f"grad_clip {PART}"),
}
ELSEWHERE = {  # whose tests have other names; var_red is threestudio's own name for something else, and read nowhere
    "pretrained_model_name_or_path", "view_dependent_prompting", "enable_memory_efficient_attention", "token_merging",
    "token_merging_params", "max_items_eval", "n_ddim_steps", "var_red",
}  # fmt: skip


def test_every_stock_option_is_tried() -> None:
    assert {*OTHER, *LOADED, *REFUSED, *ELSEWHERE} == set(FACTS[sdi.KIND])


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Any:
    return StableDiffusionTeacher.load(str(folder), device="cpu", with_text=False)


@pytest.fixture
def loaded(host: Any, folder: Path, teacher: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What was asked to be loaded; the module's own teacher is given."""
    asked: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(StableDiffusionTeacher, "load", lambda name, **how: asked.append((name, how)) or teacher)
    return asked


@pytest.mark.parametrize("name", [*OTHER, "var_red"])
def test_every_option_reaches_the_guidance(name: str, host: Any, folder: Path, loaded: list[Any]) -> None:
    path, value = str(folder), OTHER.get(name, False)
    options = host.modules[KIND]({"pretrained_model_name_or_path": path, "seed": 0, name: value})._carv.options
    base = {"pretrained_model_name_or_path": path, "seed": 0, "cfg_convention": "threestudio"}
    assert options == SDIOptions(**base, **{name: value})
    assert (options != SDIOptions(**base)) == (name != "var_red")
    assert (loaded[0][0], loaded[0][1]["half_precision"]) == (path, options.half_precision_weights)


@pytest.mark.parametrize("only", LOADED)
def test_each_option_of_loading_is_passed_on(only: str, host: Any, folder: Path, loaded: list[Any]) -> None:
    host.modules[KIND]({"pretrained_model_name_or_path": str(folder), only: True})
    how = loaded[0][1]
    assert {name: how[name] for name in LOADED.values()} == {name: name == LOADED[only] for name in LOADED.values()}
    host.modules[KIND]({"pretrained_model_name_or_path": str(folder), "token_merging": True,
                        "token_merging_params": {"ratio": 0.3}})  # fmt: skip
    assert [how["token_merging"] for _, how in loaded] == [None, {"ratio": 0.3}]


WRONG: dict[str, tuple[dict[str, Any], str]] = {name: ({name: value}, said) for name, (value, said) in REFUSED.items()}
WRONG |= {
    "objective": ({"objective": "csd"}, f"objective {PART}"),
    "sjc": ({"use_sjc": True}, f"use_sjc {PART}"),
    "antithetic": ({"antithetic": True}, "antithetic: true is for noise that is drawn, and inversion gives it here"),
    "control": ({"control_variate": True}, "control_variate: true is for noise that is drawn"),
    "adaptive": ({"proposal": "adaptive"}, "proposal: adaptive is for noise that is drawn"),
    "posterior": ({"vae_sample": "draw"}, "vae_sample: draw is for noise that is drawn"),
    "annealed twice": ({"sqrt_anneal": True}, "sqrt_anneal and t_anneal are both true"),
    "steps": ({"inversion_n_steps": 0}, "inversion_n_steps is 0"),
    "eta": ({"inversion_eta": -1.0}, "inversion_eta is -1.0"),
    "name": ({"inversion_n_step": 3}, "did you mean inversion_n_steps?"),
    "model": ({"pretrained_model_name_or_path": "no/such-model-here"}, "no/such-model-here"),
}


@pytest.mark.usefixtures("_offline")
@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_meant_is_one_sentence(case: str, host: Any, folder: Path) -> None:
    cfg, said = WRONG[case]
    with pytest.raises(CarvError, match=re.escape(said)):
        host.modules[KIND]({"pretrained_model_name_or_path": str(folder), **cfg})


def test_a_model_of_another_family_is_named(host: Any, xl_folder: Path) -> None:
    with pytest.raises(CarvError, match="holds Stable Diffusion XL"):
        host.modules[KIND]({"pretrained_model_name_or_path": str(xl_folder)})


def test_noise_that_is_drawn_takes_what_inversion_does_not(host: Any, folder: Path, loaded: list[Any]) -> None:
    drawn = {"enable_sdi": False, "antithetic": True, "control_variate": True, "proposal": "adaptive"}
    guidance = host.modules[KIND]({"pretrained_model_name_or_path": str(folder), "t_anneal": False, **drawn})
    out = guidance(sdi.render("images"), recorded.RecordedPrompts(TEXTS, 1), **recorded.views(1))
    assert (out["K"], out["nfe"]) == (4, 8)


def test_the_hosts_range_of_timesteps_wins(host: Any, folder: Path, loaded: list[Any]) -> None:
    guidance = make(host, folder)
    guidance.set_min_max_steps(0.3, 0.4)
    out = guidance(sdi.render("images"), recorded.RecordedPrompts(TEXTS, 1), **recorded.views(1))
    assert (out["min_step"], out["max_step"]) == (300, 400)


def test_previews_go_down_from_the_inversion(
    host: Any, folder: Path, loaded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    guidance = make(host, folder, n_ddim_steps=5, max_items_eval=1, view_dependent_prompting=False)
    out = guidance(sdi.render("images"), recorded.RecordedPrompts(TEXTS, 1), guidance_eval=True, **recorded.views(1))
    shown = out["eval"]
    assert shown["imgs_noisy"].shape == (1, 16, 16, 3)
    assert shown["noise_levels"] == [0.8]  # of five steps, the first that is not above t = 0.94
    assert out["nfe"] == 12 * 2  # the previews are not counted


def test_eight_draws_cost_one_encode_one_inversion_and_one_backward(
    host: Any, folder: Path, loaded: list[Any], teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = teacher.vae.encode
    monkeypatch.setattr(teacher.vae, "encode", lambda x: encoded.append(len(x)) or encode(x))
    guidance = make(host, folder, num_draws=8, stratify="render")
    backward: list[Tensor] = []
    render = sdi.render("images") * 1.0
    render.register_hook(backward.append)
    out = guidance(render, recorded.RecordedPrompts(TEXTS, 1), **recorded.views(1))
    out["loss_sdi"].backward()
    assert (out["K"], out["min_step"], out["max_step"]) == (8, 941, 941)
    assert out["nfe"] == 2 * (11 + 8)  # of the grid -99, 1, 101 ... 901, and a draw each
    assert encoded == [1]
    assert len(backward) == 1


def gradients(guidance: Any, latents: Tensor, steps: int) -> Tensor:
    """(n, D), the gradients of n renders that are the same, each with draws of its own."""
    n, rows = 32, []
    z = latents.expand(n, -1, -1, -1).clone().requires_grad_()
    utils = double.PromptUtils(*(x.expand(n, -1, -1) for x in TEXTS["text 1 True"].split(1)))
    where = {name: x.expand(n) for name, x in recorded.views(1).items()}
    for _ in range(steps):
        loss = guidance(z, utils, rgb_as_latents=True, **where)["loss_sdi"]
        rows.append(torch.autograd.grad(n * n * loss, z)[0].flatten(1))
    return torch.cat(rows)


@pytest.mark.parametrize("anneal", [True, False])
def test_eight_draws_have_the_mean_of_one(anneal: bool, host: Any, folder: Path, loaded: list[Any]) -> None:
    """Along the mean gradient of other draws and three fixed directions, within 4 standard errors."""
    options = {"guidance_scale": 20.0, "seed": 3, "max_batch": 64, "t_anneal": anneal, "inversion_n_steps": 4,
               "max_step_percent": 0.6}  # fmt: skip
    single = make(host, folder, **options)
    eight = make(host, folder, **{**options, "num_draws": 8, "stratify": "render", "proposal": "weight"})
    latents = recorded.gaussian("latents", 1, 8, 8, 4)
    first, second = gradients(single, latents, 10).split([96, 224])
    directions = torch.cat([first.mean(0, keepdim=True), recorded.fill("directions", 3, first.shape[1])])
    x, y = (g @ (directions / directions.norm(dim=1, keepdim=True)).T for g in (second, gradients(eight, latents, 3)))
    error = (x.var(0) / len(x) + y.var(0) / len(y)).sqrt()
    assert float(x.mean(0)[0] / error[0]) > 8  # there is a mean to be missed
    assert float(((x.mean(0) - y.mean(0)).abs() / error).max()) < 4
    assert float(y.var(0).sum()) < float(x.var(0).sum())
