"""The extension's ControlNet and InstructPix2Pix against what threestudio's own gave (`recorded/`)."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import recorded_editing as editing
import recorded_parity as recorded
import torch
from estimator_checks import check_same_mean, count_encodings, render_gradients
from recorded_editing import CONTROLNET, PIX2PIX
from safetensors.torch import load_file
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.teachers.controlnet import ControlNetTeacher
from carv_3d.teachers.instruct_pix2pix import InstructPix2PixTeacher

FILES = {CONTROLNET: "controlnet", PIX2PIX: "instructpix2pix"}
FACTS = {kind: recorded.facts(recorded.FOLDER / f"{name}.json") for kind, name in FILES.items()}
TENSORS = {kind: load_file(recorded.FOLDER / f"{name}.safetensors") for kind, name in FILES.items()}
CASES = [(kind, case) for kind in FILES for case in FACTS[kind]["cases"]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return editing.write_models(tmp_path_factory.mktemp("editing"))


@pytest.fixture
def _detectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """controlnet_aux and OpenCV, of which the second gives the edges that were recorded."""
    package = types.ModuleType("controlnet_aux")
    package.NormalBaeDetector = editing.Negative  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "controlnet_aux", package)
    opencv, (_, cond) = types.ModuleType("cv2"), editing.images()

    def blur(pixels: Any, ksize: tuple[int, int]) -> Any:
        assert ksize == (5, 5)
        assert (pixels == (cond[0].numpy() * 255).astype("uint8")).all()
        return pixels

    def find_edges(pixels: Any, low: int, high: int) -> Any:
        case = {(50, 100): "canny", (5, 20): "canny, other bounds"}[low, high]
        return (TENSORS[CONTROLNET][f"control {case}"][0, 0] * 255).byte().numpy()

    opencv.blur, opencv.Canny = blur, find_edges  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cv2", opencv)


@pytest.fixture
def make(host: Any, models: dict[str, Path], _detectors: None) -> Callable[..., Any]:
    def build(kind: str, **options: Any) -> Any:
        names = {"ip2p_name_or_path": str(models["pix2pix"])}
        if kind == CONTROLNET:
            names = {"pretrained_model_name_or_path": str(models["sd"])}
            names["controlnet_name_or_path"] = str(models["controlnet"])
        guidance = host.modules[f"carv-{kind}"]({**names, "seed": 0, **options})
        guidance.update_step(0, recorded.STEP)
        return guidance

    return build


def prompts(kind: str) -> editing.Prompts:
    return editing.Prompts(TENSORS[kind]["text"])


@pytest.mark.parametrize("kind", FILES)
def test_the_models_are_the_recorded_ones(kind: str, models: dict[str, Path]) -> None:
    assert editing.weights(models, kind) == FACTS[kind]["weights"]


@pytest.mark.parametrize(("kind", "case"), [pair for pair in CASES if "edit" not in pair[1]])
def test_one_uniform_draw_gives_the_stock_gradient(
    kind: str, case: str, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = FACTS[kind]["cases"][case]
    guidance = make(kind, **recorded.ONE_DRAW, **facts["options"])
    carv, (rgb, cond) = guidance._carv, editing.images()
    t, eps, posterior = editing.draws(case, facts["options"], *(facts[name] for name in ("min_step", "max_step")))
    assert t.tolist() == facts["t"]
    recorded.set_posterior(monkeypatch, carv.teacher.vae, posterior)
    recorded.deal(carv.estimator, t[:, None], eps[:, None])
    out = guidance(rgb, cond, prompts(kind), **recorded.views(1))
    recorded.check_gradients(case, out, rgb, FACTS[kind], TENSORS[kind])


@pytest.mark.parametrize(("kind", "case"), [pair for pair in CASES if "edit" in pair[1]])
def test_an_edit_is_the_stock_edit(
    kind: str, case: str, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = FACTS[kind]["cases"][case]
    guidance = make(kind, **facts["options"])
    carv, (rgb, cond) = guidance._carv, editing.images()
    t = torch.tensor(facts["t"])
    _, eps, posterior = editing.draws(case, facts["options"], 20, 980)
    recorded.set_posterior(monkeypatch, carv.teacher.vae, posterior)
    low = int(1000 * facts["options"].get("min_step_percent", 0.02))
    ranges = []

    def draw_t(first: int, end: int, *_: Any, **how: Any) -> Tensor:
        ranges.append((first, end))
        assert how["generator"] is carv.generator
        return t

    monkeypatch.setattr(torch, "randint", draw_t)
    monkeypatch.setattr(torch, "randn", lambda *_, **how: eps if how["generator"] is carv.generator else None)
    edited = guidance(rgb, cond, prompts(kind))["edit_images"]
    assert ranges == [(low, 981)]
    assert not edited.requires_grad
    expected = TENSORS[kind][f"{case}: edit_images"]
    assert float(expected.std()) > 0.02
    torch.testing.assert_close(edited, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", FILES)
def test_edits_differ_by_noise_and_say_that_there_is_no_k(kind: str, make: Callable[..., Any], host: Any) -> None:
    said: list[str] = []
    host.info = said.append
    guidance = make(kind, num_draws=8, diffusion_steps=3)
    assert said == [f"carv-{kind} edits renders, since use_sds is false: num_draws (K) is not used."]
    rgb, cond = editing.images()
    two = torch.cat([rgb, rgb]), torch.cat([cond, cond])
    edited = guidance(*two, prompts(kind))
    assert set(edited) == {"edit_images"}
    first, second = edited["edit_images"]
    assert first.shape == rgb.shape[1:]
    assert not torch.allclose(first, second, atol=1e-3)
    assert guidance._meter.counts["nfe"] == 2 * 3 * (3 if kind == PIX2PIX else 2)
    said.clear()
    make(kind, use_sds=True)
    assert said == []


@pytest.mark.parametrize("kind", FILES)
def test_eight_draws_cost_one_encoding_and_one_backward(kind: str, make: Callable[..., Any]) -> None:
    guidance, (rgb, cond) = make(kind, use_sds=True, num_draws=8, max_batch=8), editing.images()
    forward, backward = count_encodings(guidance)
    out = guidance(rgb, cond, prompts(kind), **recorded.views(1))
    out["loss_sds"].backward()
    assert (forward, backward) == ([1], [1])
    assert (out["nfe"], out["renders"]) == (8.0 * (3 if kind == PIX2PIX else 2), 1.0)
    assert rgb.grad is not None
    assert float(rgb.grad.abs().sum()) > 0


@pytest.mark.parametrize("kind", FILES)
def test_eight_draws_have_the_mean_of_one(kind: str, make: Callable[..., Any]) -> None:
    (rgb, cond), R = editing.images(), 32

    def sample(times: int, **options: Any) -> Tensor:
        guidance = make(kind, use_sds=True, fixed_size=16, vae_sample="mode", **options)
        given = cond.expand(R, -1, -1, -1)
        return render_gradients(lambda renders: guidance(renders, given, prompts(kind)), rgb, R, times)

    check_same_mean(sample(8, **recorded.ONE_DRAW), sample(3, num_draws=8, proposal="weight", stratify="render"))


@pytest.mark.parametrize("kind", FILES)
def test_each_render_is_given_its_own_image(kind: str, make: Callable[..., Any]) -> None:
    """A batch of two gives each render what it gets alone, and another image another gradient."""
    rgb, cond = editing.images()
    rgb, cond = torch.cat([rgb, rgb.flip(1)]).detach(), torch.cat([cond, cond.flip(2)])
    guidance = make(kind, use_sds=True, vae_sample="mode", **recorded.ONE_DRAW)
    t, eps = torch.tensor([[400], [700]]), recorded.gaussian("eps", 2, 1, 4, 2, 4)

    def gradient(which: slice, image: Tensor) -> Tensor:
        recorded.deal(guidance._carv.estimator, t[which], eps[which])
        given = rgb[which].clone().requires_grad_()
        loss = guidance(given, image[which], prompts(kind))["loss_sds"]
        return torch.autograd.grad(loss, given)[0] * len(given)

    both = gradient(slice(0, 2), cond)
    for r in range(2):
        torch.testing.assert_close(both[r : r + 1], gradient(slice(r, r + 1), cond), rtol=1e-3, atol=1e-4)
    other = gradient(slice(0, 2), cond.flip(0))
    assert float((both - other).norm() / both.norm()) > 1e-2


SAID = "PyTorch 2 uses memory efficient attention by default."
LOADED: dict[str, tuple[Any, Callable[[dict[str, Any]], bool]]] = {
    "pretrained_model_name_or_path": ("a/model", lambda how: how["name"] == "a/model"),
    "ip2p_name_or_path": ("a/model", lambda how: how["name"] == "a/model"),
    "cache_dir": ("a/cache", lambda how: how["cache_dir"] == "a/cache"),
    "enable_sequential_cpu_offload": (True, lambda how: how["cpu_offload"]),
    "enable_attention_slicing": (True, lambda how: how["attention_slicing"]),
    "enable_channels_last_format": (True, lambda how: how["channels_last"]),
    "half_precision_weights": (False, lambda how: not how["half_precision"]),
    "enable_memory_efficient_attention": (True, lambda how: SAID in how["said"]),
    "min_step_percent": (0.1, lambda how: how["carv"].options.min_step_percent == 0.1),
    "ddim_scheduler_name_or_path": (None, lambda how: float(how["carv"].teacher.schedule.alphas_cumprod[-1]) > 0.5),
}
"""Options that no recorded case tries: another value, and what shows that it is acted on; None is a folder."""


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in FILES for name in FACTS[kind][kind]])
def test_every_stock_option_is_acted_on(
    kind: str, name: str, make: Callable[..., Any], host: Any, models: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    options = {option for case in FACTS[kind]["cases"].values() for option in case["options"]}
    if name in options and name not in LOADED:
        return  # `test_one_uniform_draw_gives_the_stock_gradient` tries it
    how: dict[str, Any] = {"said": []}
    host.info = how["said"].append
    teacher = make(kind)._teacher

    def load(name: str, **given: Any) -> Any:
        how.update(given, name=name)
        return teacher

    monkeypatch.setattr(ControlNetTeacher, "load_with", lambda controlnet, scale, name, **given: load(name, **given))
    monkeypatch.setattr(InstructPix2PixTeacher, "load", load)
    value, acted_on = LOADED[name]
    if value is None:
        (tmp_path / "scheduler").mkdir()
        file = tmp_path / "scheduler" / "scheduler_config.json"
        file.write_text('{"beta_schedule": "linear", "beta_start": 1e-05, "beta_end": 2e-05}')
        value = str(tmp_path)
    for given, expected in ((value, True), (FACTS[kind][kind][name], False)):
        how["said"].clear()
        how["carv"] = make(kind, **{"half_precision_weights": True, name: given})._carv
        assert bool(acted_on(how)) == expected


@pytest.mark.parametrize("kind", FILES)
def test_every_stock_option_has_its_stock_default(kind: str, host: Any) -> None:
    config = vars(host.modules[f"carv-{kind}"].Config())
    stock = FACTS[kind][kind]
    assert {name: config[name] for name in stock} == stock
    assert "view_dependent_prompting" not in config
    assert ("pretrained_model_name_or_path" in config) == (kind == CONTROLNET)


def test_the_controlnet_is_threestudios_own_unless_another_is_named(
    make: Callable[..., Any], host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    module = sys.modules["threestudio-carv.controlnet"]

    def find(name: str, option: str, cache_dir: str | None) -> Path:
        names.append((name, cache_dir))
        raise CarvError("enough")

    monkeypatch.setattr(module, "find_controlnet", find)
    for given in ({}, {"control_type": "canny", "cache_dir": "a"}, {"controlnet_name_or_path": "b/c"}):
        with pytest.raises(CarvError, match="enough"):
            host.modules[f"carv-{CONTROLNET}"](given)
    normal, canny = "lllyasviel/control_v11p_sd15_normalbae", "lllyasviel/control_v11p_sd15_canny"
    assert names == [(normal, None), (canny, "a"), ("b/c", None)]


@pytest.mark.usefixtures("_offline")
def test_a_model_that_is_not_there_or_another_is_one_sentence(
    make: Callable[..., Any], models: dict[str, Path], tmp_path: Path
) -> None:
    none = tmp_path / "none"
    with pytest.raises(CarvError, match=re.escape(f"controlnet_name_or_path is {none}, and there is no folder {none}")):
        make(CONTROLNET, controlnet_name_or_path=str(none))
    with pytest.raises(CarvError, match=r"controlnet_name_or_path is a/b, which is no local folder, and .*offline"):
        make(CONTROLNET, controlnet_name_or_path="a/b")
    unet = models["sd"] / "unet"
    with pytest.raises(
        CarvError, match=r"holds a UNet2DConditionModel, no ControlNetModel: name a ControlNet's folder"
    ):
        make(CONTROLNET, controlnet_name_or_path=str(unet))
    with pytest.raises(CarvError, match="use InstructPix2PixTeacher, in threestudio carv-stable-diffusion-instructpix"):
        make(CONTROLNET, pretrained_model_name_or_path=str(models["pix2pix"]))
    with pytest.raises(CarvError, match=r"holds Stable Diffusion 1.x or 2.x, and InstructPix2Pix was expected: use"):
        make(PIX2PIX, ip2p_name_or_path=str(models["sd"]))
    with pytest.raises(CarvError, match=re.escape(f"no diffusion model at {none}")):
        make(PIX2PIX, ip2p_name_or_path=str(none))
    with pytest.raises(CarvError, match=re.escape(f"ddim_scheduler_name_or_path is {tmp_path}, and {tmp_path} holds")):
        make(PIX2PIX, ddim_scheduler_name_or_path=str(tmp_path))


def test_a_controlnet_of_another_width_is_one_sentence(make: Callable[..., Any], tmp_path: Path) -> None:
    from small_editing import build_controlnet

    other = build_controlnet(tmp_path / "wide", width=24)
    with pytest.raises(
        CarvError, match=r"takes text of width 24 and the UNet of .* takes 16: name a ControlNet of this"
    ):
        make(CONTROLNET, controlnet_name_or_path=str(other))


def test_a_package_that_is_not_there_is_one_sentence(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "controlnet_aux", None)
    with pytest.raises(
        CarvError, match=r"control_type normal needs controlnet_aux: pip install controlnet_aux, or set"
    ):
        make(CONTROLNET)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(CarvError, match="control_type canny needs OpenCV: pip install opencv-python"):
        make(CONTROLNET, control_type="canny")


@pytest.mark.parametrize("kind", FILES)
def test_what_cannot_be_meant_is_one_sentence(kind: str, make: Callable[..., Any]) -> None:
    with pytest.raises(CarvError, match="fixed_size is 20; it must be a multiple of 8"):
        make(kind, fixed_size=20)
    with pytest.raises(CarvError, match="the objective nfsd needs a negative prompt next to the empty one"):
        make(kind, objective="nfsd")
    with pytest.raises(CarvError, match=r"condition_scale is 'much'"):
        make(kind, condition_scale="much")
    guidance, (rgb, cond) = make(kind), editing.images()
    with pytest.raises(CarvError, match="needs cond_rgb, an image for each render, and this system gives none"):
        guidance(rgb, prompts(kind), **recorded.views(1))  # as dreamfusion-system calls
    with pytest.raises(CarvError, match=r"cond_rgb has the shape \(2, 20, 36, 3\) and the renders \(1, 20, 36, 3\)"):
        guidance(rgb, torch.cat([cond, cond]), prompts(kind))
    with pytest.raises(CarvError, match="takes images, and this system renders latents"):
        guidance(rgb, cond, prompts(kind), rgb_as_latents=True)
    if kind == CONTROLNET:
        with pytest.raises(CarvError, match=r"cond_rgb has height and width \(10, 36\), and the renders \(20, 36\)"):
            guidance(rgb, cond[:, :10], prompts(kind))
    else:  # is resized, as by threestudio
        assert guidance(rgb, cond[:, :10], prompts(kind))["edit_images"].shape == rgb.shape
