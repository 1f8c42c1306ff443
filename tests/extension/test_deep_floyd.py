"""`carv-deep-floyd-guidance` against what threestudio's own gave (`recorded/`, by `record_deepfloyd.py`)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import host_double as double
import pytest
import recorded_parity as recorded
import torch
from estimator_checks import check_same_mean, count_encodings, render_gradients
from safetensors.torch import load_file
from small_families import build_family
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.teachers.deepfloyd_if import DeepFloydTeacher

FACTS = recorded.facts(recorded.FOLDER / "deepfloyd.json")
TENSORS = load_file(recorded.FOLDER / "deepfloyd.safetensors")
STOCK, OURS = "deep-floyd-guidance", "carv-deep-floyd-guidance"
SIZE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_family("DeepFloyd IF", tmp_path_factory.mktemp("if") / "model")
    recorded.fill_weights(folder, ("unet",))
    return folder


@pytest.fixture
def make(host: Any, folder: Path) -> Callable[..., Any]:
    def build(**options: Any) -> Any:
        guidance = host.modules[OURS]({"pretrained_model_name_or_path": str(folder), "seed": 0, **options})
        guidance.update_step(0, recorded.STEP)
        return guidance

    return build


def prompts(n: int, perp_neg: bool = False) -> Any:
    return recorded.RecordedPrompts(TENSORS, n, perp_neg)


def test_the_model_is_the_recorded_one(folder: Path) -> None:
    assert recorded.fingerprint(folder, ("unet",)) == FACTS["weights"]


@pytest.mark.parametrize("case", FACTS["cases"])
def test_one_uniform_draw_gives_the_stock_gradient(case: str, make: Callable[..., Any]) -> None:
    guidance = make(**recorded.ONE_DRAW, **FACTS["cases"][case]["options"])
    rgb = recorded.render(case)
    n = len(rgb)
    t = torch.tensor(FACTS["cases"][case]["t"])
    recorded.deal(guidance._carv.estimator, t[:, None], recorded.gaussian("eps", n, 3, SIZE, SIZE)[:, None])
    out = guidance(rgb, prompts(n, "perp-neg" in case), **recorded.views(n))
    recorded.check_gradients(case, out, rgb, FACTS, TENSORS)


def test_previews_start_from_the_stock_noise(make: Callable[..., Any]) -> None:
    guidance = make(**recorded.ONE_DRAW, max_items_eval=1)
    t, eps = torch.tensor([[67], [500]]), recorded.gaussian("eps", 2, 3, SIZE, SIZE)[:, None]
    recorded.deal(guidance._carv.estimator, t, eps)
    shown = guidance(recorded.render("images").detach(), prompts(2), guidance_eval=True, **recorded.views(2))["eval"]
    facts = FACTS["previews"]
    assert (shown["bs"], shown["texts"]) == (facts["bs"], facts["texts"])
    assert shown["noise_levels"] == pytest.approx(facts["noise_levels"], abs=1.1e-3)
    assert {name: list(value.shape) for name, value in shown.items() if isinstance(value, Tensor)} == facts["shapes"]
    # threestudio leaves what is outside of [0, 1]
    expected = TENSORS["previews: imgs_noisy"].clamp(0, 1)
    torch.testing.assert_close(shown["imgs_noisy"], expected, atol=1e-5, rtol=1e-4)


def test_a_preview_is_cut_to_what_pixels_can_be(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """At each step, as the model's own sampler does: what the UNet is given never leaves [-1, 1] but by its noise."""
    guidance = make(guidance_scale=1000.0)
    rgb = torch.rand(1, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    teacher, sizes = guidance._carv.teacher, []
    eps_hat = teacher.eps_hat

    def noted(z_t: Tensor, *rest: Tensor) -> Tensor:
        sizes.append(float(z_t.abs().max()))
        return eps_hat(z_t, *rest)

    monkeypatch.setattr(teacher, "eps_hat", noted)
    guidance(rgb, prompts(1), guidance_eval=True, **recorded.views(1))
    assert len(sizes) > 2
    assert max(sizes) < 8


class Tried(SimpleNamespace):
    """A guidance that was made with one option, what its model was loaded with, and what the host was given to log."""

    def step(self, **more: Any) -> dict[str, Any]:
        return self.guidance(recorded.render("images"), self.utils, **double.VIEWS, **more)


HOW = {
    "enable_sequential_cpu_offload": "cpu_offload", "enable_attention_slicing": "attention_slicing",
    "enable_channels_last_format": "channels_last", "half_precision_weights": "half_precision",
}  # fmt: skip
OTHER: dict[str, tuple[Any, Callable[[Tried], bool]]] = {
    "pretrained_model_name_or_path": ("a/model", lambda made: made.loaded["name"] == "a/model"),
    "enable_memory_efficient_attention": (True, lambda made: made.said[0].startswith("PyTorch 2")),
    "enable_sequential_cpu_offload": (True, lambda made: made.loaded["cpu_offload"]),
    "enable_attention_slicing": (True, lambda made: made.loaded["attention_slicing"]),
    "enable_channels_last_format": (False, lambda made: not made.loaded["channels_last"]),
    "half_precision_weights": (False, lambda made: not made.loaded["half_precision"]),
    "guidance_scale": (7.5, lambda made: made.step()["guidance_scale"] == 8.5),
    "grad_clip": (0.01, lambda made: made.step().get("grad_clip") == 0.01),
    "min_step_percent": (0.1, lambda made: made.step()["min_step"] == 100),
    "max_step_percent": (0.5, lambda made: made.step()["max_step"] == 500),
    "weighting_strategy": ("uniform", lambda made: bool((made.guidance._carv.weights == 1).all())),
    "view_dependent_prompting": (False, lambda made: bool(made.step()) and made.utils.asked == [False]),
    "max_items_eval": (1, lambda made: made.step(guidance_eval=True)["eval"]["bs"] == 1),
}
"""Another value for every option of the stock type, and what shows that it is acted on."""


@pytest.mark.parametrize("name", FACTS[STOCK])
def test_every_stock_option_is_acted_on(
    name: str, make: Callable[..., Any], host: Any, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    loaded: dict[str, Any] = {}
    said: list[str] = []
    teacher = DeepFloydTeacher.load(str(folder), device="cpu")

    def load(name: str, **how: Any) -> Any:
        loaded.update(how, name=name)
        return teacher

    monkeypatch.setattr(DeepFloydTeacher, "load", load)
    host.info = said.append
    value, acted_on = OTHER[name]
    assert value != FACTS[STOCK][name]
    text = teacher.text_embeddings(["a mug", "a cup"])
    for given, expected in ((value, True), (FACTS[STOCK][name], False)):
        said[:] = [""]
        utils = double.PromptUtils(text, text.flip(0), from_all_sides=text)
        options = {"half_precision_weights": True, "num_draws": 2, name: given}
        made = Tried(guidance=make(**options), loaded=loaded, said=said[1:] or said, utils=utils)
        assert acted_on(made) == expected


def test_every_stock_option_has_its_stock_default(host: Any) -> None:
    config = vars(host.modules[OURS].Config())
    assert {name: config[name] for name in FACTS[STOCK]} == FACTS[STOCK]
    assert not {"token_merging", "token_merging_params"} & set(config)  # which would do nothing


def test_eight_draws_cost_one_encoding_and_one_backward(make: Callable[..., Any]) -> None:
    guidance, rgb = make(num_draws=8, max_batch=8), recorded.render("images")
    forward, backward = count_encodings(guidance)
    out = guidance(rgb, prompts(2), **recorded.views(2))
    out["loss_sds"].backward()
    assert (forward, backward) == ([2], [2])
    assert (out["nfe"], out["renders"]) == (2.0 * 2 * 8, 2.0)
    assert rgb.grad is not None
    assert float(rgb.grad.abs().sum()) > 0


def test_eight_draws_have_the_mean_of_one(make: Callable[..., Any]) -> None:
    rgb, R = recorded.render("perp-neg"), 32
    text = TENSORS["text 1 True"].chunk(2)
    utils = double.PromptUtils(*(x.expand(R, -1, -1) for x in text))
    views = {name: value.expand(R) for name, value in recorded.views(1).items()}

    def sample(times: int, **options: Any) -> Tensor:
        guidance = make(**options)
        return render_gradients(lambda given: guidance(given, utils, **views), rgb, R, times)

    check_same_mean(sample(8, **recorded.ONE_DRAW), sample(3, num_draws=8, proposal="weight", stratify="render"))


@pytest.mark.usefixtures("_offline")
def test_a_wrong_model_is_one_sentence(make: Callable[..., Any], sd_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CarvError, match=r"holds Stable Diffusion 1.x or 2.x, and DeepFloyd IF, stage I was expected"):
        make(pretrained_model_name_or_path=str(sd_folder))
    with pytest.raises(CarvError, match=re.escape(f"no diffusion model at {tmp_path / 'none'}")):
        make(pretrained_model_name_or_path=str(tmp_path / "none"))
    with pytest.raises(CarvError, match="vae is some/vae, and DeepFloyd IF, stage I has no VAE: leave it out"):
        make(vae="some/vae")


def test_another_guidance_given_this_model_names_this_one(host: Any, folder: Path) -> None:
    for kind in ("guidance", "prompt-processor"):
        with pytest.raises(CarvError, match="carv-deep-floyd-guidance with carv-deep-floyd-prompt-processor"):
            host.modules[f"carv-stable-diffusion-{kind}"]({"pretrained_model_name_or_path": str(folder)})


def test_latents_are_refused(make: Callable[..., Any]) -> None:
    with pytest.raises(CarvError, match="carv-deep-floyd-guidance works on pixels, and this system renders latents"):
        make()(torch.rand(2, 8, 8, 4), prompts(2), rgb_as_latents=True, **recorded.views(2))


def test_the_prompt_processor_gives_the_models_own_text_from_a_cache_of_its_own(
    host: Any, folder: Path, tmp_path: Path, sd_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    kind = host.modules["carv-deep-floyd-prompt-processor"]
    cfg = {"pretrained_model_name_or_path": str(folder), "prompt": "A Mug ", "cache_dir": str(tmp_path)}
    processor = kind({**cfg, "negative_prompt": "bad"})
    text, negative = DeepFloydTeacher.load(str(folder), device="cpu").text_embeddings(["a mug", "bad"])
    torch.testing.assert_close(processor.load_from_cache("A Mug "), text)
    torch.testing.assert_close(processor.load_from_cache("bad"), negative)
    assert not torch.allclose(text, negative)
    assert not list(tmp_path.glob("*.pt"))
    assert kind.Config().pretrained_model_name_or_path == "DeepFloyd/IF-I-XL-v1.0"
    with pytest.raises(CarvError, match=r"DeepFloyd IF, stage I was expected"):
        kind({**cfg, "pretrained_model_name_or_path": str(sd_folder)})


def test_a_prompt_of_more_tokens_than_the_model_reads_is_cut_so_that_views_differ(
    host: Any, folder: Path, tmp_path: Path
) -> None:
    given = {"prompt": " ".join(["mug"] * 90), "pretrained_model_name_or_path": str(folder), "cache_dir": str(tmp_path)}
    processor = host.modules["carv-deep-floyd-prompt-processor"](given)
    assert given["prompt"].startswith(processor.prompt)
    texts = [processor.load_from_cache(view) for view in processor.prompts_vd]
    assert len({tuple(text.flatten().tolist()) for text in texts}) == 4
