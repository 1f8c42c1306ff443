"""`carv-zero123-unified-guidance`, also against what threestudio's own gave (`record_zero123_unified.py`)."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL
import pytest
import recorded_parity as recorded
import recorded_zero123_unified as unified
import torch
from compvis_models import write_image
from estimator_checks import check_same_mean
from PIL import Image
from recorded_unified import views
from safetensors.torch import load_file, save_file
from torch import Tensor
from zero123_models import PARTS, WIDTH, write_zero123_folder

from carv_3d.errors import CarvError
from carv_3d.teachers.load import load_teacher

KIND = "carv-zero123-unified-guidance"
PILLOW = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="was recorded with Pillow 13, which resizes anew"
)
FACTS = recorded.facts(unified.FACTS)
TENSORS = load_file(unified.TENSORS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_zero123_folder(tmp_path_factory.mktemp("zero123") / "model")


@pytest.fixture(scope="module")
def phi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_zero123_folder(tmp_path_factory.mktemp("zero123") / "phi", "phi ")


@pytest.fixture
def make(host: Any, folder: Path, tmp_path: Path) -> Callable[..., Any]:
    write_image(tmp_path / "image.png")

    def build(**options: Any) -> Any:
        cfg = {"pretrained_model_name_or_path": str(folder), "cond_image_path": str(tmp_path / "image.png"),
               "half_precision_weights": False, **recorded.ONE_DRAW, "seed": 0}  # fmt: skip
        guidance = host.modules[KIND]({**cfg, **options})
        guidance.update_step(0, recorded.STEP)
        return guidance

    return build


def test_the_model_is_the_recorded_one(folder: Path) -> None:
    file = recorded.weights_file(folder, "image_encoder")
    weights = load_file(file)
    positions = {"vision_model.embeddings.position_ids": torch.arange(5)[None]}  # which older versions save
    save_file({**weights, **positions}, file, {"format": "pt"})
    assert recorded.fingerprint(folder, PARTS) == FACTS["weights"]
    save_file(weights, file, {"format": "pt"})


@PILLOW
@pytest.mark.parametrize(("name", "given"), unified.CASES)
def test_one_uniform_draw_gives_the_stock_gradient(
    name: str, given: str, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = f"{name}, {given}"
    guidance, rgb = make(**unified.OPTIONS[name]), recorded.render(given)
    carv = guidance._carv
    recorded.set_posterior(monkeypatch, carv.teacher.vae, recorded.gaussian("posterior", 2, 4, 8, 8))
    t = torch.tensor(FACTS["cases"][case]["t"])
    recorded.deal(carv.estimator, t[:, None], recorded.gaussian("eps", 2, 4, 8, 8)[:, None])
    out = guidance(rgb, **views(2), rgb_as_latents="latents" in given)
    recorded.check_gradients(case, out, rgb, FACTS, TENSORS)
    for key in unified.RETURNED if name == "one step" else ():
        value = TENSORS[f"returned: {key}"].float()
        assert out[key].shape == value.shape
        assert float((out[key].detach() - value).abs().max()) <= recorded.CLOSE * float(value.abs().max()), key


@PILLOW
@pytest.mark.parametrize("case", unified.VSD_OPTIONS)
def test_one_draw_gives_the_stock_gradients_of_vsd(
    case: str, make: Callable[..., Any], phi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guidance, facts = make(**unified.options(case, str(phi))), FACTS["cases"][case]
    parameters = dict(guidance.named_parameters())
    for name, parameter in parameters.items():
        parameter.data = 0.3 * recorded.fill(name.removeprefix("lora."), *parameter.shape)
    carv, rgb = guidance._carv, recorded.render("images")
    recorded.set_posterior(monkeypatch, carv.sds.teacher.vae, recorded.gaussian("posterior", 2, 4, 8, 8))
    recorded.deal(carv.sds.estimator, torch.tensor(facts["t"])[:, None], recorded.gaussian("eps", 2, 4, 8, 8)[:, None])
    eps_phi = recorded.gaussian("eps phi", 2, 4, 8, 8)[:, None]
    recorded.deal(carv.training.estimator, torch.tensor(facts["t_phi"])[:, None], eps_phi)
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.ones(*size))  # no camera is dropped
    out = guidance(rgb, **views(2))
    recorded.check_gradients(case, out, rgb, FACTS, TENSORS)
    assert out["loss_train_phi"].item() == pytest.approx(facts["loss_phi"], rel=recorded.CLOSE)
    gradient = dict(zip(parameters, torch.autograd.grad(out["loss_train_phi"], list(parameters.values()))))
    products = {n: recorded.along(g, n) for n, g in ((n.removeprefix("lora."), g) for n, g in gradient.items())}
    size = facts["phi_norm"]
    assert products == pytest.approx(facts["phi_gradient"], rel=recorded.CLOSE, abs=recorded.CLOSE * size)


def test_every_stock_option_has_its_stock_default(host: Any) -> None:
    config = vars(host.modules[KIND].Config())
    assert {name: config[name] for name in FACTS[unified.KIND]} == FACTS[unified.KIND]


SDS: dict[str, Any] = {
    "guidance_type": "vsd", "pretrained_model_name_or_path": "phi", "guidance_scale": 2.0,
    "weighting_strategy": "uniform", "min_step_percent": 0.7, "max_step_percent": 0.3, "grad_clip": 0.05,
    "cond_image_path": "other.png", "cond_elevation_deg": 20.0, "cond_azimuth_deg": 30.0, "cond_camera_distance": 1.5,
}  # fmt: skip
"""Another value of each option that changes the gradient."""
VSD: dict[str, Any] = {
    "vsd_phi_model_name_or_path": "phi", "vsd_guidance_scale_phi": 2.5, "vsd_camera_condition_type": "mvp",
    "vsd_use_camera_condition": False,
}  # fmt: skip
"""The same, of VSD's."""
ELSEWHERE = {
    "half_precision_weights", "return_rgb_1step_orig", "return_rgb_multistep_orig", "n_rgb_multistep_orig_steps",
    "vsd_use_lora", "vsd_lora_cfg_training", "vsd_lora_n_timestamp_samples",
    "weights",  # of threestudio's own BaseModule
}  # fmt: skip
"""Those of tests below."""


def test_every_stock_option_is_tried() -> None:
    assert {*SDS, *VSD, *ELSEWHERE} == set(FACTS[unified.KIND])


def gradient(guidance: Any) -> Tensor:
    """Of the render; the LoRA, where there is one, is not at zero."""
    for name, parameter in guidance.named_parameters():
        parameter.data = 0.3 * recorded.fill(name, *parameter.shape)
    rgb = recorded.render("images")
    return torch.autograd.grad(guidance(rgb, **views(2))["loss_sd"], rgb)[0]


@pytest.mark.parametrize("name", {**SDS, **VSD})
def test_every_stock_option_is_acted_on(name: str, make: Callable[..., Any], phi: Path, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 30, 30)).save(tmp_path / "other.png")
    value = {**SDS, **VSD}[name]
    value = {"phi": str(phi), "other.png": str(tmp_path / "other.png")}.get(value, value)
    base = {"guidance_type": "vsd"} if name in VSD else {}
    before, after = (gradient(make(vae_sample=False, **options)) for options in (base, {**base, name: value}))
    assert bool(torch.isfinite(after).all())
    assert not torch.allclose(before, after, rtol=1e-3)


def test_options_of_the_loras_training_are_passed_on(make: Callable[..., Any]) -> None:
    options = make(guidance_type="vsd", vsd_lora_cfg_training=True, vsd_lora_n_timestamp_samples=3)._carv.options
    assert (options.lora_cfg_training, options.lora_n_timestamp_samples) == (True, 3)
    out = make(guidance_type="vsd", vsd_lora_n_timestamp_samples=3)(recorded.render("images"), **views(2))
    assert out["K_lora"] == 3  # where threestudio's own fails


def test_images_of_the_first_draws_are_returned(make: Callable[..., Any]) -> None:
    asked = {"return_rgb_1step_orig": True, "return_rgb_multistep_orig": True, "num_draws": 3}
    kept = [make(n_rgb_multistep_orig_steps=n, **asked)(recorded.render("images"), **views(2)) for n in (1, 2)]
    for out in kept:
        assert out["rgb_multistep_orig"].shape == out["rgb_1step_orig"].shape == (2, 16, 16, 3)
    assert torch.equal(kept[0]["rgb_multistep_orig"], kept[0]["rgb_1step_orig"])
    assert not torch.equal(kept[1]["rgb_multistep_orig"], kept[1]["rgb_1step_orig"])


def test_an_image_loss_may_be_asked_for(make: Callable[..., Any]) -> None:
    out = make(use_img_loss=True)(recorded.render("images"), **views(2))
    assert {name for name in out if name.startswith("loss_")} == {"loss_sd", "loss_sd_img"}


def test_the_image_encoder_is_not_kept_and_the_host_sees_the_lora_alone(make: Callable[..., Any]) -> None:
    guidance = make(guidance_type="vsd")
    assert {name.split(".")[0] for name, _ in guidance.named_parameters()} == {"lora"}
    assert not hasattr(guidance._teacher, "image_encoder")
    assert guidance._teacher.image_embedding.shape == (1, 1, WIDTH)
    assert guidance._carv.lora_score.denoiser is guidance._teacher
    assert list(make().parameters()) == []
    assert guidance._teacher.dtype == make(half_precision_weights=True)._teacher.dtype == torch.float32  # on the CPU


def test_eight_draws_cost_one_encoding_and_one_backward(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, per_draw in (("sds", 2), ("vsd", 3)):
        guidance = make(guidance_type=kind, num_draws=8, stratify="render", proposal="weight")
        encoded: list[int] = []
        encode = guidance._teacher.vae.encode
        monkeypatch.setattr(guidance._teacher.vae, "encode", lambda x, e=encode, n=encoded: (n.append(len(x)), e(x))[1])
        rgb, backward = recorded.render("images"), []
        render = rgb * 1.0
        render.register_hook(backward.append)
        out = guidance(render, **views(2))
        out["loss_sd"].backward()
        assert (encoded, len(backward)) == ([2], 1)
        assert out["nfe"] == 2 * 8 * per_draw + (2 if kind == "vsd" else 0)


@pytest.mark.parametrize("kind", ["sds", "vsd"])
def test_eight_draws_have_the_mean_of_one(kind: str, make: Callable[..., Any]) -> None:
    def gradients(steps: int, **options: Any) -> Tensor:
        """(n, D), the gradients of renders that are the same, each with draws of its own."""
        guidance, n, kept = make(guidance_type=kind, guidance_scale=20.0, max_batch=512, **options), 32, []
        for name, parameter in guidance.named_parameters():
            parameter.data = 0.3 * recorded.fill(name, *parameter.shape)
        z = (recorded.gaussian("latents", 1, 8, 8, 4) / 2).expand(n, -1, -1, -1).clone().requires_grad_()
        where = {name: x[:1].expand(n, *x.shape[1:]) for name, x in views(1).items()}
        for _ in range(steps):
            loss = guidance(z, rgb_as_latents=True, **where)["loss_sd"]
            kept.append(torch.autograd.grad(n * loss, z)[0].flatten(1))
        return torch.cat(kept)

    check_same_mean(gradients(8), gradients(3, num_draws=8, proposal="weight", stratify="render", seed=5))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "image": ({"cond_image_path": "no/such.png"}, "there is no such file; name an RGBA image"),
    "no image": ({"cond_image_path": ""}, "cond_image_path is empty; name an RGBA image"),
    "lora": ({"vsd_use_lora": False}, "vsd_use_lora is false"),
    "loras": ({"loras": ["a.safetensors"]}, "loras is for models in diffusers' format, and this is Zero123"),
    "weighting": ({"weighting_strategy": "sds"}, "it must be one of dreamfusion, uniform, fantasia3d"),
    "steps": ({"n_rgb_multistep_orig_steps": 0}, "n_rgb_multistep_orig_steps is 0"),
    "angle": ({"cond_azimuth_deg": "left"}, "cond_azimuth_deg is 'left'"),
    "objective": ({"objective": "csd"}, "guidance has no option 'objective'"),
    "model": ({"pretrained_model_name_or_path": "no/such-model"}, "no/such-model"),
    "phi": ({"guidance_type": "vsd", "vsd_phi_model_name_or_path": "no/such-phi"}, "no/such-phi"),
}


@pytest.mark.usefixtures("_offline")
@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_meant_is_one_sentence(case: str, make: Callable[..., Any]) -> None:
    cfg, said = WRONG[case]
    with pytest.raises(CarvError, match=re.escape(said)):
        make(**cfg)


def test_another_family_is_named(make: Callable[..., Any], sd_folder: Path) -> None:
    with pytest.raises(CarvError, match=r"holds Stable Diffusion .*, and Zero123 in diffusers' format was"):
        make(pretrained_model_name_or_path=str(sd_folder))


def test_the_model_is_named_where_text_is_due(host: Any, folder: Path) -> None:
    with pytest.raises(
        CarvError, match="which takes an image and no text: use Zero123DiffusersTeacher, in threestudio"
    ):
        host.modules["carv-stable-diffusion-guidance"]({"pretrained_model_name_or_path": str(folder)})
    with pytest.raises(CarvError, match="which takes an image and no text: use Zero123DiffusersTeacher"):
        load_teacher(str(folder))


def test_a_projection_of_another_size_is_named(make: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    file = recorded.weights_file(tmp_path / "model", "clip_camera_projection")
    save_file({"proj.weight": torch.eye(3), "proj.bias": torch.zeros(3)}, file)
    with pytest.raises(CarvError, match="holds no projection from 20 numbers to 16"):
        make(pretrained_model_name_or_path=str(tmp_path / "model"))


def test_a_whole_folder_is_asked_for(make: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    recorded.weights_file(tmp_path / "model", "image_encoder").unlink()
    with pytest.raises(CarvError, match=r"image_encoder/model.safetensors: it is missing"):
        make(pretrained_model_name_or_path=str(tmp_path / "model"))
    index = tmp_path / "model" / "model_index.json"
    index.write_text(json.dumps({k: v for k, v in json.loads(index.read_text()).items() if k != "feature_extractor"}))
    with pytest.raises(CarvError, match="it lists no feature_extractor"):
        make(pretrained_model_name_or_path=str(tmp_path / "model"))


def test_samples_are_refused(make: Callable[..., Any]) -> None:
    with pytest.raises(CarvError, match="visualize_samples needs a prompt"):
        make().sample(None, **views(2))
