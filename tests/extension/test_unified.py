"""`carv-stable-diffusion-unified-guidance`, also against what threestudio's own gave (`record_unified.py`)."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import host_double as double
import pytest
import recorded_parity as recorded
import recorded_unified as unified
import torch
from recorded_unified import views
from safetensors.torch import load_file
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.guidance.options import GuidanceOptions
from carv_3d.guidance.vsd import VSDOptions
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher

KIND = "carv-stable-diffusion-unified-guidance"
FACTS = recorded.facts(unified.FACTS)
TENSORS = load_file(unified.TENSORS)
TEXTS = load_file(recorded.TENSORS)


def make(host: Any, folder: Path, **options: Any) -> Any:
    return recorded.one_draw_guidance(host, KIND, folder, **options)


@pytest.mark.parametrize(("name", "given"), unified.CASES)
def test_one_uniform_draw_gives_the_stock_gradient(
    name: str, given: str, host: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = f"{name}, {given}"
    guidance = make(host, folder, guidance_scale=recorded.SCALE, **unified.OPTIONS[name])
    carv, rgb = guidance._carv, recorded.render(given)
    n = len(rgb)
    recorded.set_posterior(monkeypatch, carv.teacher.vae, recorded.gaussian("posterior", n, 4, 8, 8))
    t = torch.tensor(FACTS["cases"][case]["t"])
    recorded.deal(carv.estimator, t[:, None], recorded.gaussian("eps", n, 4, 8, 8)[:, None])
    utils = recorded.RecordedPrompts(TEXTS, n, "perp-neg" in given)
    out = guidance(rgb, utils, rgb_as_latents="latents" in given, **views(n))
    recorded.check_gradients(case, out, rgb, FACTS, TENSORS)
    for key in unified.RETURNED if name == "one step" else ():
        value = TENSORS[f"returned: {key}"].float()
        assert out[key].shape == value.shape
        assert float((out[key].detach() - value).abs().max()) <= recorded.CLOSE * float(value.abs().max()), key


@pytest.mark.parametrize("case", unified.VSD_OPTIONS)
def test_one_draw_gives_the_stock_gradients_of_vsd(
    case: str, host: Any, folder: Path, v_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, n, facts = unified.options(case, str(v_folder)), unified.renders(case), FACTS["cases"][case]
    guidance = make(host, folder, guidance_scale=7.5, **options)
    parameters = dict(guidance.named_parameters())
    for name, parameter in parameters.items():
        parameter.data = 0.3 * recorded.fill(name.removeprefix("lora."), *parameter.shape)
    carv, rgb = guidance._carv, recorded.render("perp-neg" if n == 1 else "images")
    K = options.get("vsd_lora_n_timestamp_samples", 1)
    recorded.set_posterior(monkeypatch, carv.sds.teacher.vae, recorded.gaussian("posterior", n, 4, 8, 8))
    recorded.deal(carv.sds.estimator, torch.tensor(facts["t"])[:, None], recorded.gaussian("eps", n, 4, 8, 8)[:, None])
    # threestudio's has the renders along the faster axis
    t_phi = torch.tensor(facts["t_phi"]).view(K, n).T
    eps_phi = recorded.gaussian("eps phi", K * n, 4, 8, 8).view(K, n, 4, 8, 8).transpose(0, 1)
    recorded.deal(carv.training.estimator, t_phi, eps_phi)
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.ones(*size))  # no camera is dropped
    out = guidance(rgb, recorded.RecordedPrompts(TEXTS, n), **views(n))
    recorded.check_gradients(case, out, rgb, FACTS, TENSORS)
    assert out["loss_train_phi"].item() == pytest.approx(facts["loss_phi"], rel=recorded.CLOSE)
    gradient = dict(zip(parameters, torch.autograd.grad(out["loss_train_phi"], list(parameters.values()))))
    products = {n: recorded.along(g, n) for n, g in ((n.removeprefix("lora."), g) for n, g in gradient.items())}
    size = facts["phi_norm"]
    assert products == pytest.approx(facts["phi_gradient"], rel=recorded.CLOSE, abs=recorded.CLOSE * size)
    norm = sum(float(g.square().sum()) for g in gradient.values()) ** 0.5
    assert norm == pytest.approx(size, rel=recorded.CLOSE)


def test_every_stock_option_has_its_stock_default(host: Any) -> None:
    config = vars(host.modules[KIND].Config())
    assert {name: config[name] for name in FACTS[unified.KIND]} == FACTS[unified.KIND]


OTHER: dict[str, Any] = {
    "pretrained_model_name_or_path": "another/model", "guidance_scale": [0, 50.0, 7.5, 1000], "min_step_percent": 0.1,
    "max_step_percent": [0, 0.9, 0.5, 100], "grad_clip": 0.5, "half_precision_weights": False, "sqrt_anneal": True,
    "trainer_max_steps": 10,
    "weighting_strategy": ("uniform", "uniform"), "use_img_loss": (False, ("objective", "sds")),
}  # fmt: skip
"""Another value for the options that `GuidanceOptions` has; (given, kept) where they differ."""
OTHER_VSD: dict[str, Any] = {
    "guidance_type": ("vsd", ("objective", "vsd_hifa")),
    "vsd_phi_model_name_or_path": ("phi/model", ("pretrained_model_name_or_path_lora", "phi/model")),
    "vsd_guidance_scale_phi": (2.5, ("guidance_scale_lora", 2.5)),
    "vsd_lora_cfg_training": (True, ("lora_cfg_training", True)),
    "vsd_lora_n_timestamp_samples": (3, ("lora_n_timestamp_samples", 3)),
    "vsd_use_camera_condition": (False, ("camera_condition_type", "none")),
    "vsd_camera_condition_type": ("spherical", ("camera_condition_type", "spherical")),
}
LOADED = {
    "enable_sequential_cpu_offload": "cpu_offload", "enable_attention_slicing": "attention_slicing",
    "enable_channels_last_format": "channels_last",
}  # fmt: skip
REFUSED = {
    "controlnet_model_name_or_path": ("some/net", "controlnet_model_name_or_path is 'some/net', which threestudio's"),
    "preprocessor": ("canny", "preprocessor is 'canny', which threestudio's own never uses: leave it out"),
    "control_scale": (2.0, "control_scale is 2.0, which threestudio's own never uses"),
    "lora_model_name_or_path": ("a/lora", "give the file as loras"),
    "vsd_use_lora": (False, "vsd_use_lora is false"),
}
ELSEWHERE = {  # whose tests have other names
    "view_dependent_prompting", "return_rgb_1step_orig", "return_rgb_multistep_orig", "n_rgb_multistep_orig_steps",
    "enable_memory_efficient_attention", "token_merging", "token_merging_params",
    "weights",  # of threestudio's own BaseModule
}  # fmt: skip


def test_every_stock_option_is_tried() -> None:
    assert {*OTHER, *OTHER_VSD, *LOADED, *REFUSED, *ELSEWHERE} == set(FACTS[unified.KIND])


@pytest.fixture(scope="module")
def models(folder: Path, v_folder: Path) -> list[Any]:
    """A teacher and another model, of this module alone: hooks are put on them."""
    return [StableDiffusionTeacher.load(str(path), device="cpu") for path in (folder, v_folder)]


@pytest.fixture
def loaded(host: Any, monkeypatch: pytest.MonkeyPatch, models: list[Any]) -> list[tuple[str, dict[str, Any]]]:
    """What was asked to be loaded: the teacher, and then the LoRA's model."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def load(name: str, **how: Any) -> Any:
        asked.append((name, how))
        return models[name == "phi/model"]

    monkeypatch.setattr(StableDiffusionTeacher, "load", load)
    monkeypatch.setattr(sys.modules["threestudio-carv.vsd"], "load_denoiser", load)
    return asked


@pytest.mark.parametrize("name", {**OTHER, **OTHER_VSD})
def test_every_option_reaches_the_guidance(name: str, host: Any, loaded: list[Any]) -> None:
    given, kept = value if isinstance(value := {**OTHER, **OTHER_VSD}[name], tuple) else (value, value)
    vsd = {"guidance_type": "vsd"} if name in OTHER_VSD else {}
    base: dict[str, Any] = {"pretrained_model_name_or_path": "a/model", "seed": 0, "use_img_loss": True,
                            "weighting_strategy": "one_minus_alpha"}  # fmt: skip
    base |= {"lora_cfg_training": False, "guidance_scale": 100.0} if vsd else {}
    changed = dict([kept]) if isinstance(kept, tuple) else {name: kept}
    changed |= {"use_img_loss": False} if "objective" in changed else {}
    options = host.modules[KIND](
        {"pretrained_model_name_or_path": "a/model", "seed": 0, **vsd, name: given}
    )._carv.options
    assert options == (VSDOptions if vsd else GuidanceOptions)(**{**base, **changed})
    assert loaded[0][0] == options.pretrained_model_name_or_path
    assert loaded[0][1]["half_precision"] == options.half_precision_weights
    assert [asked for asked, _ in loaded[1:]] == (["phi/model"] if name == "vsd_phi_model_name_or_path" else [])


@pytest.mark.parametrize("only", LOADED)
@pytest.mark.parametrize("kind", ["sds", "vsd"])
def test_each_option_of_loading_is_passed_on(only: str, kind: str, host: Any, loaded: list[Any]) -> None:
    host.modules[KIND]({only: True, "guidance_type": kind, "vsd_phi_model_name_or_path": "phi/model"})
    assert len(loaded) == (2 if kind == "vsd" else 1)
    for _, how in loaded:
        assert {name: how[name] for name in LOADED.values()} == {name: name == LOADED[only] for name in LOADED.values()}


def test_tokens_are_merged_in_both_models(
    host: Any, loaded: list[Any], models: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    merged: list[Any] = []
    module = sys.modules["threestudio-carv.unified"]
    monkeypatch.setattr(module, "merge_tokens", lambda *given: merged.append(given))
    vsd = {"guidance_type": "vsd", "token_merging": True}
    host.modules[KIND]({"token_merging_params": {"ratio": 0.3}})
    host.modules[KIND]({"token_merging": True, "token_merging_params": {"ratio": 0.3}})
    host.modules[KIND](vsd)
    assert [how["token_merging"] for _, how in loaded] == [None, {"ratio": 0.3}, {}]
    assert merged == []  # one model, merged as it was loaded
    host.modules[KIND]({**vsd, "token_merging_params": {"ratio": 0.3}, "vsd_phi_model_name_or_path": "phi/model"})
    assert [given[0] is models[1].unet and given[1] for given in merged] == [{"ratio": 0.3}]


@pytest.mark.parametrize("kind", ["sds", "vsd"])
def test_prompts_may_be_the_same_for_all_views(
    kind: str, host: Any, loaded: list[Any], rgb: Tensor, utils: Any
) -> None:
    guidance = host.modules[KIND]({"guidance_type": kind, "view_dependent_prompting": False, "num_draws": 1})
    guidance(rgb, utils, **double.VIEWS)
    assert utils.asked == [False] * (2 if kind == "vsd" else 1)


def test_memory_efficient_attention_is_the_default_of_torch(host: Any, loaded: list[Any]) -> None:
    said: list[str] = []
    host.info = said.append
    host.modules[KIND]({"enable_memory_efficient_attention": True})
    assert said == ["PyTorch 2 uses memory efficient attention by default."]


WRONG: dict[str, tuple[dict[str, Any], str]] = {name: ({name: value}, said) for name, (value, said) in REFUSED.items()}
WRONG |= {
    "guidance_type": ({"guidance_type": "sjc"}, "guidance_type is 'sjc'; it must be one of sds, vsd"),
    "weighting": ({"weighting_strategy": "sds"}, "it must be one of dreamfusion, uniform, fantasia3d"),
    "camera": ({"vsd_camera_condition_type": None}, "vsd_camera_condition_type is null and vsd_use_camera_condition"),
    "camera type": ({"vsd_camera_condition_type": "rays"}, "vsd_camera_condition_type is 'rays'"),
    "steps": ({"n_rgb_multistep_orig_steps": 0}, "n_rgb_multistep_orig_steps is 0"),
    "objective": ({"objective": "csd"}, "guidance has no option 'objective'"),
    "recon": ({"guidance_type": "vsd", "use_recon_loss": True}, "use_recon_loss is no part"),
    "name": ({"vsd_lora_cfg_trainin": True}, "did you mean vsd_lora_cfg_training?"),
    "model": ({"pretrained_model_name_or_path": "no/such-model-here"}, "no/such-model-here"),
    "phi": ({"guidance_type": "vsd", "vsd_phi_model_name_or_path": "no/such-phi-here"}, "no/such-phi-here"),
}


@pytest.mark.usefixtures("_offline")
@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_meant_is_one_sentence(case: str, host: Any, folder: Path) -> None:
    cfg, said = WRONG[case]
    with pytest.raises(CarvError, match=re.escape(said)):
        host.modules[KIND]({"pretrained_model_name_or_path": str(folder), **cfg})


@pytest.mark.parametrize("option", ["pretrained_model_name_or_path", "vsd_phi_model_name_or_path"])
def test_a_model_of_another_family_is_named(option: str, host: Any, folder: Path, xl_folder: Path) -> None:
    names = {"pretrained_model_name_or_path": str(folder), option: str(xl_folder)}
    with pytest.raises(CarvError, match="holds Stable Diffusion XL"):
        host.modules[KIND]({"guidance_type": "vsd", **names})


def test_latents_have_no_image_loss(host: Any, folder: Path) -> None:
    guidance = make(host, folder)
    with pytest.raises(CarvError, match="use_img_loss needs images"):
        guidance(recorded.render("latents"), recorded.RecordedPrompts(TEXTS, 2), rgb_as_latents=True, **views(2))


def test_the_host_trains_the_lora_alone(host: Any, loaded: list[Any], rgb: Tensor, utils: Any) -> None:
    assert list(host.modules[KIND]({}).parameters()) == []
    guidance = host.modules[KIND]({"guidance_type": "vsd", "num_draws": 1, "use_img_loss": False})
    assert {name.split(".")[0] for name, _ in guidance.named_parameters()} == {"lora"}
    guidance(rgb, utils, **double.VIEWS)
    guidance._untrained_steps = 20
    with pytest.raises(CarvError, match=r"optimizer.params.guidance.lr=0.0001 and a lambda_train_phi above 0"):
        guidance(rgb, utils, **double.VIEWS)


@pytest.mark.parametrize("kind", ["sds", "vsd"])
def test_what_is_returned_is_of_the_first_draws(
    kind: str, host: Any, loaded: list[Any], rgb: Tensor, utils: Any, models: list[Any]
) -> None:
    guidance = host.modules[KIND]({"guidance_type": kind, "guidance_scale": 7.5, "num_draws": 3, "seed": 0,
                                   "return_rgb_1step_orig": True, "return_rgb_multistep_orig": True,
                                   "n_rgb_multistep_orig_steps": 2})  # fmt: skip
    kept: list[Any] = []
    carv = guidance._carv.sds if kind == "vsd" else guidance._carv
    estimate = carv.estimator.estimate_residual
    carv.estimator.estimate_residual = lambda *given, **more: kept.append(estimate(*given, **more)) or kept[0]
    out = guidance(rgb, utils, **double.VIEWS)
    schedule, t = carv.teacher.schedule, kept[0].t[:, 0]
    alpha, sigma = (x.view(2, 1, 1, 1) for x in (schedule.alpha(t), schedule.sigma(t)))
    assert torch.equal(out["timesteps"], t)
    torch.testing.assert_close(out["weights"], 1 - alpha)
    torch.testing.assert_close(out["lambdas"], (sigma / alpha).flatten())
    assert out["rgb"] is rgb
    z_t = schedule.add_noise(out["latents"].detach(), kept[0].eps[:, 0], t)
    with torch.no_grad():

        def guided(z: Tensor, t: Tensor) -> Tensor:
            text, uncond = (models[0].eps_hat(z, t, x) for x in (utils.text, utils.uncond))
            return uncond + 7.5 * (text - uncond)

        once = (z_t - sigma * guided(z_t, t)) / alpha
        half = torch.div(t, 2, rounding_mode="floor")
        between = schedule.add_noise(once, guided(z_t, t), half)
        alpha, sigma = (x.view(2, 1, 1, 1) for x in (schedule.alpha(half), schedule.sigma(half)))
        twice = (between - sigma * guided(between, half)) / alpha
        for name, z in (("1step", once), ("multistep", twice)):
            torch.testing.assert_close(out[f"latents_{name}_orig"], z, rtol=1e-3, atol=1e-3 * float(z.abs().max()))
            assert out[f"rgb_{name}_orig"].shape == (2, 16, 16, 3)
    assert out["nfe"] == 2 * 3 * (3 if kind == "vsd" else 2) + (2 if kind == "vsd" else 0)  # images are not counted


def test_eight_draws_cost_one_encode_and_one_backward(
    host: Any, loaded: list[Any], rgb: Tensor, utils: Any, monkeypatch: pytest.MonkeyPatch, models: list[Any]
) -> None:
    encoded: list[int] = []
    encode = models[0].vae.encode
    monkeypatch.setattr(models[0].vae, "encode", lambda x: encoded.append(len(x)) or encode(x))
    backward: list[Tensor] = []
    for kind in ("sds", "vsd"):
        guidance = host.modules[KIND]({"guidance_type": kind, "num_draws": 8, "use_img_loss": False})
        render = rgb * 1.0
        render.register_hook(backward.append)
        out = guidance(render, utils, **double.VIEWS)
        out["loss_sd"].backward()
        assert out["K"] == 8
    assert encoded == [2, 2]
    assert len(backward) == 2


def gradients(guidance: Any, latents: Tensor, steps: int) -> Tensor:
    """(n, D), the gradients of n renders that are the same, each with draws of its own."""
    n, rows = 32, []
    z = latents.expand(n, -1, -1, -1).clone().requires_grad_()
    prompts = TEXTS["text 1 True"].split(1)
    utils = double.PromptUtils(*(x.expand(n, -1, -1) for x in prompts), from_all_sides=prompts[0].expand(n, -1, -1))
    where = {name: x[:1].expand(n, *x.shape[1:]) for name, x in views(1).items()}
    for _ in range(steps):
        loss = guidance(z, utils, rgb_as_latents=True, **where)["loss_sd"]
        rows.append(torch.autograd.grad(n * loss, z)[0].flatten(1))
    return torch.cat(rows)


@pytest.mark.parametrize("kind", ["sds", "vsd"])
def test_eight_draws_have_the_mean_of_one(kind: str, host: Any, loaded: list[Any]) -> None:
    """Along the mean gradient of other draws and three fixed directions, within 4 standard errors."""
    options = {"guidance_type": kind, "guidance_scale": 20.0, "use_img_loss": False, "seed": 3, "max_batch": 64,
               "lora_max_batch": 64}  # fmt: skip
    single = host.modules[KIND]({**options, **recorded.ONE_DRAW})
    eight = host.modules[KIND]({**options, "num_draws": 8})
    latents = recorded.gaussian("latents", 1, 8, 8, 4)
    first, second = gradients(single, latents, 12).split([128, 256])
    directions = torch.cat([first.mean(0, keepdim=True), recorded.fill("directions", 3, first.shape[1])])
    x, y = (g @ (directions / directions.norm(dim=1, keepdim=True)).T for g in (second, gradients(eight, latents, 2)))
    error = (x.var(0) / len(x) + y.var(0) / len(y)).sqrt()
    assert float(x.mean(0)[0] / error[0]) > 8  # there is a mean to be missed
    assert float(((x.mean(0) - y.mean(0)).abs() / error).max()) < 4
    assert float(y.var(0).sum()) < float(x.var(0).sum()) / 4
