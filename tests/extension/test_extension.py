"""The threestudio extension in a host double: the stock objective, threestudio's conventions, its lifecycle."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import host_double as double
import pytest
import torch
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.tiny.tokens import LENGTH

B = 2


@pytest.fixture
def make(host: Any, sd_folder: Path) -> Any:
    def build(**cfg: Any) -> Any:
        given = {"pretrained_model_name_or_path": str(sd_folder), "seed": 0, "vae_sample": False, **cfg}
        return host.modules["carv-stable-diffusion-guidance"](given)

    return build


def prompts(teacher: Any, perp_neg: bool = False) -> Any:
    text, uncond = teacher.text_embeddings(["a mug", "a cup"]), teacher.text_embeddings(["", "bad"])
    if not perp_neg:
        return double.PromptUtils(text, uncond)
    negatives = teacher.text_embeddings(["front", "side", "back", "top"]).unflatten(0, (B, 2))
    return double.PromptUtils(text, uncond, negatives, torch.tensor([[-0.5, -2.0], [0.0, -1.0]]))


BATCH = {
    "elevation": torch.tensor([15.0, 20.0]), "azimuth": torch.tensor([0.0, 90.0]),
    "camera_distances": torch.tensor([1.5, 2.0]), "rays_o": None, "height": 64,
}  # fmt: skip


def stock_gradient(
    teacher: Any, rgb: Tensor, utils: Any, t: Tensor, eps: Tensor, w: Any, scale: float, clip: float | None = None
) -> Tensor:
    """threestudio's gradient on the rendered image, item by item, for the same timesteps and noise."""
    total = torch.zeros_like(rgb)
    for i in range(len(rgb)):
        z = teacher.encode(rgb.permute(0, 3, 1, 2)[i : i + 1], sample=False)
        abar = teacher.schedule.alphas_cumprod[t[i]]
        with torch.no_grad():
            z_t = abar.sqrt() * z + (1 - abar).sqrt() * eps[i : i + 1]

            def predict(embedding: Tensor, i: int = i, z_t: Tensor = z_t) -> Tensor:
                return teacher.eps_hat(z_t, t[i : i + 1], embedding[None])

            text, null = predict(utils.text[i]), predict(utils.uncond[i])
            if utils.use_perp_neg:
                e_pos, push = text - null, 0
                for j in range(2):
                    e = predict(utils.negatives[i, j]) - null
                    along = (e * e_pos).sum() / (e_pos * e_pos).sum() * e_pos
                    push = push + utils.weights[i, j] * (e - along)
                noise = null + scale * (e_pos + push)
            else:
                noise = text + scale * (text - null)
            grad = w(abar) * (noise - eps[i : i + 1])
            grad = grad if clip is None else grad.clamp(-clip, clip)
        total += torch.autograd.grad(z, rgb, grad)[0] / len(rgb)
    return total


WEIGHTS = {
    "sds": lambda abar: 1 - abar, "uniform": lambda abar: 1.0, "fantasia3d": lambda abar: abar.sqrt() * (1 - abar),
}  # fmt: skip


@pytest.mark.parametrize("perp_neg", [False, True])
@pytest.mark.parametrize("strategy", list(WEIGHTS))
@pytest.mark.parametrize("clip", [None, 0.3])
def test_one_uniform_draw_is_the_stock_gradient(
    make: Any, sd_teacher: Any, rgb: Tensor, strategy: str, perp_neg: bool, clip: float | None
) -> None:
    guidance = make(num_draws=1, proposal="uniform", weighting_strategy=strategy, guidance_scale=7.5, grad_clip=clip)
    utils = prompts(sd_teacher, perp_neg)
    out = guidance(rgb, utils, **BATCH)
    draws = guidance._carv  # its own generator: seeded, so a second one draws the same
    again = make(num_draws=1, proposal="uniform", weighting_strategy=strategy, guidance_scale=7.5)._carv
    latents = torch.zeros(B, 4, 8, 8)
    same = again.estimator.draw(latents, again.generator)
    expected = stock_gradient(sd_teacher, rgb, utils, same.t[:, 0], same.eps[:, 0], WEIGHTS[strategy], 7.5, clip)
    found = torch.autograd.grad(out["loss_sds"], rgb)[0]
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert draws.estimator.proposal.min_step >= 20


def test_options_of_the_model_reach_its_loading(host: Any, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher

    load, seen = StableDiffusionTeacher.load, {}
    said: list[str] = []

    def record(name: str, **options: Any) -> Any:
        seen.update(options)
        return load(name, with_text=False)

    monkeypatch.setattr(StableDiffusionTeacher, "load", record)
    host.info = said.append
    make()
    assert seen == {
        "device": torch.device("cpu"), "half_precision": True, "channels_last": False, "attention_slicing": False,
        "cpu_offload": False, "token_merging": None, "with_text": False,
    }  # fmt: skip
    assert said == []
    make(
        enable_channels_last_format=True, enable_attention_slicing=True, enable_sequential_cpu_offload=True,
        half_precision_weights=False, token_merging=True, token_merging_params={"ratio": 0.3},
        enable_memory_efficient_attention=True,
    )  # fmt: skip
    assert [seen[one] for one in ("channels_last", "attention_slicing", "cpu_offload")] == [True] * 3
    assert (seen["half_precision"], seen["token_merging"]) == (False, {"ratio": 0.3})
    assert said == ["PyTorch 2 uses memory efficient attention by default."]


def test_prompts_may_be_the_same_for_all_views(make: Any, sd_teacher: Any, rgb: Tensor) -> None:
    utils = prompts(sd_teacher)
    asked = []
    utils.get_text_embeddings = lambda *views: asked.append(views[3]) or torch.cat([utils.text, utils.uncond])
    for by_view in (True, False):
        make(view_dependent_prompting=by_view)(rgb, utils, **BATCH)
    assert asked == [True, False]


def test_all_that_is_logged_is_a_scalar(make: Any, sd_teacher: Any, rgb: Tensor) -> None:
    out = make(use_img_loss=True)(rgb, prompts(sd_teacher), **BATCH)
    for name, value in out.items():
        assert isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1), name
    for name in ("grad_norm", "min_step", "max_step", "K", "ess", "snr", "nonfinite", "nfe", "renders",
                 "seconds_encode", "seconds_denoise", "loss_sds_img"):  # fmt: skip
        assert name in out
    assert (out["K"], out["renders"], out["nfe"]) == (4.0, float(B), 2.0 * 4 * B)


def test_num_draws_auto_is_measured_on_the_hosts_parameters(make: Any, sd_teacher: Any) -> None:
    guidance = make(num_draws="auto")
    theta = torch.rand(B, 16, 16, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for step in range(12):
        guidance.update_step(0, step)
        out = guidance(theta.sigmoid(), prompts(sd_teacher), **BATCH)
        out["loss_sds"].backward()  # the measuring leaves the graph whole
    assert out["K_auto"] == out["K"] == guidance._carv.auto.num_draws
    assert out["upstream_share"] >= 0
    assert guidance._carv.state_dict()["auto"]["variances"]["bursts"] == 1  # one burst
    with pytest.raises(CarvError, match="num_draws is auto, which measures one process, and there are 2"):
        guidance._carv.join_ranks(1, 2)
    with pytest.raises(CarvError, match="num_draws is 'some'"):
        make(num_draws="some")


def test_nothing_is_decoded_unless_the_image_loss_asks_for_it(
    make: Any, sd_teacher: Any, rgb: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    guidance = make()
    teacher = guidance._carv.teacher._teacher
    decode = teacher.decode
    monkeypatch.setattr(teacher, "decode", lambda z, **kw: calls.append(len(z)) or decode(z, **kw))
    guidance(rgb, prompts(sd_teacher), **BATCH)
    assert calls == []


def test_schedules_follow_the_hosts_steps(make: Any, sd_teacher: Any, rgb: Tensor) -> None:
    guidance = make(max_step_percent=[0, 0.98, 0.5, 100], min_step_percent=0.02)
    seen = []
    for step in (0, 50, 200):
        guidance.update_step(0, step)
        seen.append(guidance(rgb, prompts(sd_teacher), **BATCH)["max_step"])
    assert seen == [980.0, 740.0, 500.0]


def test_timesteps_stay_in_range_at_the_very_top(make: Any, sd_teacher: Any, rgb: Tensor) -> None:
    out = make(min_step_percent=1.0, max_step_percent=1.0)(rgb, prompts(sd_teacher), **BATCH)
    assert out["max_step"] == 999.0


def test_previews_are_images_and_leave_the_draws_alone(make: Any, sd_teacher: Any, rgb: Tensor) -> None:
    guidance, other = make(max_items_eval=1, guidance_scale=2.0), make(guidance_scale=2.0)
    found = guidance(rgb, prompts(sd_teacher, True), guidance_eval=True, **BATCH)["eval"]
    assert found["bs"] == 1
    assert len(found["noise_levels"]) == len(found["texts"]) == 1
    for name in ("imgs_noisy", "imgs_1step", "imgs_1orig", "imgs_final"):
        assert found[name].shape == (1, 16, 16, 3)
        assert 0 <= float(found[name].min()) <= float(found[name].max()) <= 1
    plain = other(rgb, prompts(sd_teacher, True), **BATCH)
    again = guidance(rgb, prompts(sd_teacher, True), **BATCH)
    assert again["nfe"] == 2 * plain["nfe"]  # previews are not counted
    other(rgb, prompts(sd_teacher, True), **BATCH)
    assert torch.equal(guidance._carv.generator.get_state(), other._carv.generator.get_state())


def test_state_survives_the_hosts_checkpoint(host: Any, make: Any, sd_teacher: Any, rgb: Tensor) -> None:
    system_class = type("system:carv-checkpoint", (host.modules["carv-checkpoint"], double.System), {})
    first, second = system_class(), system_class()
    first.guidance = make(proposal="adaptive")
    for _ in range(3):
        first.guidance(rgb, prompts(sd_teacher), **BATCH)
    checkpoint: dict[str, Any] = {}
    first.on_save_checkpoint(checkpoint)
    second.on_load_checkpoint(checkpoint)
    second.guidance = make(proposal="adaptive", seed=9)
    second.on_fit_start()
    assert second.own == 1
    found = [s.guidance(rgb, prompts(sd_teacher), **BATCH) for s in (first, second)]
    assert torch.equal(found[0]["loss_sds"], found[1]["loss_sds"])
    for counted in ("nfe", "renders"):
        assert found[0][counted] == found[1][counted]
    assert found[1]["renders"] == 4 * B


def test_a_system_with_another_guidance_is_left_alone(host: Any) -> None:
    system = type("system", (host.modules["carv-checkpoint"], double.System), {})()
    checkpoint: dict[str, Any] = {}
    system.on_save_checkpoint(checkpoint)
    assert checkpoint == {"own": 1}
    system.on_load_checkpoint(checkpoint)
    system.on_fit_start()


def test_a_model_that_sees_nothing_ends_the_run(make: Any, sd_teacher: Any, rgb: Tensor) -> None:
    guidance = make()
    utils = prompts(sd_teacher)
    utils.text = utils.text * float("nan")
    for _ in range(19):
        assert guidance(rgb, utils, **BATCH)["nonfinite"] == 4.0 * B
    with pytest.raises(CarvError, match="no finite prediction for 20 steps"):
        guidance(rgb, utils, **BATCH)


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        ({"num_draws": 0}, "num_draws"),
        ({"proposal": "best"}, "proposal"),
        ({"weighting_strategy": "sdss"}, "weighting_strategy"),
        ({"pretrained_model_name_or_path": "no/such-model-here"}, "no/such-model-here"),
        ({"token_merging": True, "token_merging_params": {"ratioo": 1}}, "tomesd"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(
    make: Any, cfg: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CarvError, match=re.escape(said)):
        make(**cfg)


def test_an_unknown_option_is_refused_with_the_nearest_one(make: Any) -> None:
    with pytest.raises(CarvError, match="no option 'num_drawz'; did you mean num_draws"):
        make(num_drawz=3)


def test_systems_that_render_latents_can_show_them(make: Any, sd_teacher: Any) -> None:
    z = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    guidance = make()
    expected = sd_teacher.decode(torch.nn.functional.interpolate(z, (8, 8), mode="bilinear", align_corners=False))
    torch.testing.assert_close(guidance.decode_latents(z), expected)
    assert guidance.decode_latents(z, latent_height=16, latent_width=16).shape == (1, 3, 32, 32)


def test_a_system_may_set_the_range_of_timesteps_itself(make: Any, sd_teacher: Any, rgb: Tensor) -> None:
    guidance = make(sqrt_anneal=True)
    guidance.set_min_max_steps(0.3, 0.4)
    out = guidance(rgb, prompts(sd_teacher), **BATCH)
    assert (out["min_step"], out["max_step"]) == (300.0, 400.0)


def test_the_prompt_processor_reads_a_folder(host: Any, sd_folder: Path) -> None:
    processor = host.modules["carv-stable-diffusion-prompt-processor"](
        {"pretrained_model_name_or_path": str(sd_folder)}
    )
    assert processor.read_from == str(sd_folder)
    assert processor.cfg.use_cache
    assert processor.cfg.spawn


def test_the_built_in_model_is_read_from_the_package_and_never_from_a_cache(host: Any, tmp_path: Path) -> None:
    processor = host.modules["carv-stable-diffusion-prompt-processor"]({"pretrained_model_name_or_path": "carv-tiny"})
    assert (Path(processor.read_from) / "model_index.json").is_file()
    assert not processor.cfg.use_cache
    processor.spawn_func(processor.read_from, ["a red mug", ""], str(tmp_path))
    names = [tmp_path / f"{double.hash_prompt(processor.read_from, prompt)}.pt" for prompt in ("a red mug", "")]
    saved, empty = map(torch.load, names)
    assert saved.shape == (LENGTH, 128)
    assert not torch.equal(saved, empty)


def test_the_built_in_model_sets_the_sizes(host: Any) -> None:
    guidance = host.modules["carv-stable-diffusion-guidance"]({"pretrained_model_name_or_path": "carv-tiny"})
    teacher = guidance._carv.teacher
    assert (teacher.image_size, teacher.latent_size) == (64, 16)
    images = torch.rand(1, 32, 32, 3).requires_grad_()
    text = torch.zeros(1, 20, teacher.unet.config.cross_attention_dim)
    batch = {name: value[:1] if isinstance(value, Tensor) else value for name, value in BATCH.items()}
    out = guidance(images, double.PromptUtils(text, text), **batch)
    assert guidance._carv.estimator.options.num_draws == 4
    assert torch.autograd.grad(out["loss_sds"], images)[0].abs().max() > 0


def test_an_old_torch_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "1.13.1+cu117")
    with pytest.raises(ImportError, match=r"needs torch 2\.0 or newer, .* has 1\.13\.1"):
        double.install(monkeypatch)


def test_a_model_of_another_prediction_type_is_one_sentence(make: Any, sd_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(sd_folder, tmp_path / "model")
    file = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": "sample"}))
    with pytest.raises(CarvError, match="prediction_type is 'sample', not epsilon or v_prediction"):
        make(pretrained_model_name_or_path=str(tmp_path / "model"))


def test_without_the_package_the_import_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "carv_3d", None)
    with pytest.raises(ImportError, match=re.escape("install.sh --threestudio")):
        double.install(monkeypatch)
