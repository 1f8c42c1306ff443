"""threestudio's calls to `carv-stable-diffusion-guidance` in a host double, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import host_double as double
import pytest
import torch
from torch import Tensor

from carv_3d.errors import CarvError

B = 2


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


def drawn(guidance: Any) -> tuple[Tensor, Tensor]:
    """t (R,) and eps (R, ...) of the first draw of its next step; it draws the same again."""
    carv, state = guidance._carv, guidance._carv.generator.get_state()
    draws = carv.estimator.draw(torch.zeros(B, 4, 8, 8), carv.generator)
    carv.generator.set_state(state)
    return draws.t[:, 0], draws.eps[:, 0]


@pytest.mark.parametrize("strategy", list(WEIGHTS))
@pytest.mark.parametrize("clip", [None, 0.3])
def test_perp_neg_of_two_views_is_right_where_threestudios_is_not(
    make: Callable[..., Any], sd_teacher: Any, rgb: Tensor, perp_neg: Any, strategy: str, clip: float | None
) -> None:
    guidance = make(num_draws=1, proposal="uniform", weighting_strategy=strategy, guidance_scale=7.5, grad_clip=clip)
    t, eps = drawn(guidance)
    expected = stock_gradient(sd_teacher, rgb, perp_neg, t, eps, WEIGHTS[strategy], 7.5, clip)
    out = guidance(rgb, perp_neg, **double.VIEWS)
    gradient = torch.autograd.grad(out["loss_sds"], rgb)[0]
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("objective", ["csd", "nfsd"])
def test_other_objectives_have_their_own_gradient(
    make: Callable[..., Any], sd_teacher: Any, rgb: Tensor, utils: Any, objective: str
) -> None:
    guidance = make(num_draws=1, proposal="uniform", objective=objective, guidance_scale=7.5)
    t, eps = drawn(guidance)
    z = sd_teacher.encode(rgb.permute(0, 3, 1, 2), sample=False)
    abar = sd_teacher.schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
    with torch.no_grad():
        z_t = abar.sqrt() * z + (1 - abar).sqrt() * eps
        text, negative = (sd_teacher.eps_hat(z_t, t, embedding) for embedding in (utils.text, utils.uncond))
        empty = sd_teacher.eps_hat(z_t, t, sd_teacher.text_embeddings(["", ""]))
        d = torch.where(t.view(-1, 1, 1, 1) < 200, empty, empty - negative)
        f = text - negative if objective == "csd" else d + 8.5 * (text - empty)
    expected = torch.autograd.grad(z, rgb, (1 - abar) * f / B)[0]
    out = guidance(rgb, utils, **double.VIEWS)
    torch.testing.assert_close(torch.autograd.grad(out["loss_sds"], rgb)[0], expected, rtol=1e-3, atol=1e-5)
    assert out["nfe"] == B * (2 if objective == "csd" else 3)


def test_noise_free_score_distillation_needs_a_negative_prompt(
    make: Callable[..., Any], sd_teacher: Any, rgb: Tensor, utils: Any
) -> None:
    utils.uncond = sd_teacher.text_embeddings(["", ""])
    with pytest.raises(CarvError, match=r"nfsd needs a negative prompt: set system\.prompt_processor\.negative_prompt"):
        make(objective="nfsd")(rgb, utils, **double.VIEWS)


def test_latents_are_taken_as_they_are(make: Callable[..., Any], sd_teacher: Any, utils: Any) -> None:
    z = torch.randn(B, 8, 8, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    guidance = make(num_draws=1, proposal="uniform")
    t, eps = drawn(guidance)
    out = guidance(z, utils, **double.VIEWS, rgb_as_latents=True)
    abar = sd_teacher.schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
    with torch.no_grad():
        z_t = abar.sqrt() * z.permute(0, 3, 1, 2) + (1 - abar).sqrt() * eps
        text, uncond = (sd_teacher.eps_hat(z_t, t, embedding) for embedding in (utils.text, utils.uncond))
        f = (1 - abar) * (text + 100 * (text - uncond) - eps) / B
    torch.testing.assert_close(torch.autograd.grad(out["loss_sds"], z)[0], f.permute(0, 2, 3, 1), rtol=1e-3, atol=1e-4)


def test_all_that_is_logged_is_a_scalar(make: Callable[..., Any], rgb: Tensor, utils: Any) -> None:
    out = make(use_img_loss=True)(rgb, utils, **double.VIEWS)
    for name, value in out.items():
        assert isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1), name
    for name in ("grad_norm", "min_step", "max_step", "K", "ess", "snr", "nonfinite", "nfe", "renders",
                 "seconds_encode", "seconds_denoise", "loss_sds_img"):  # fmt: skip
        assert name in out
    assert (out["K"], out["renders"], out["nfe"]) == (4.0, float(B), 2.0 * 4 * B)


def test_seconds_are_those_of_one_call_and_counts_of_all(make: Callable[..., Any], rgb: Tensor, utils: Any) -> None:
    guidance = make(num_draws=2)
    first = guidance(rgb, utils, **double.VIEWS)
    guidance._meter.seconds["encode"] = 1e6
    second = guidance(rgb, utils, **double.VIEWS)
    assert second["seconds_encode"] < 1e3
    assert (second["nfe"], second["renders"]) == (2 * first["nfe"], 2 * first["renders"])


def test_num_draws_auto_is_measured_on_the_hosts_parameters(make: Callable[..., Any], utils: Any) -> None:
    guidance = make(num_draws="auto")
    theta = torch.rand(B, 16, 16, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for step in range(12):
        guidance.update_step(0, step)
        out = guidance(theta.sigmoid(), utils, **double.VIEWS)
        out["loss_sds"].backward()  # the measuring leaves the graph whole
    assert out["K_auto"] == out["K"] == guidance._carv.auto.num_draws
    assert out["upstream_share"] >= 0
    assert guidance._carv.state_dict()["auto"]["variances"]["bursts"] == 1  # one burst
    with pytest.raises(CarvError, match="num_draws is auto, which measures one process, and there are 2"):
        guidance._carv.join_ranks(1, 2)
    with pytest.raises(CarvError, match="num_draws is 'some'"):
        make(num_draws="some")


def test_nothing_is_decoded_unless_the_image_loss_asks_for_it(
    make: Callable[..., Any], rgb: Tensor, utils: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    guidance = make()
    teacher = guidance._carv.teacher._teacher
    decode = teacher.decode
    monkeypatch.setattr(teacher, "decode", lambda z, **kw: calls.append(len(z)) or decode(z, **kw))
    guidance(rgb, utils, **double.VIEWS)
    assert calls == []


def test_the_reconstruction_is_compared_where_it_is_asked_for(
    make: Callable[..., Any], sd_teacher: Any, rgb: Tensor, utils: Any
) -> None:
    assert "loss_recon" not in make()(rgb, utils, **double.VIEWS)
    images = rgb.permute(0, 3, 1, 2)
    decoded = sd_teacher.decode(sd_teacher.encode(images, sample=False), clamp=False)
    out = make(use_recon_loss=True)(rgb, utils, **double.VIEWS)
    torch.testing.assert_close(out["loss_recon"], (images - decoded).square().mean())


def test_schedules_follow_the_hosts_steps_and_epochs(make: Callable[..., Any], rgb: Tensor, utils: Any) -> None:
    guidance = make(max_step_percent=[0, 0.98, 0.5, 100], guidance_scale=[0, 100.0, 7.0, 2.0])
    values = []
    for epoch, step in ((0, 0), (0, 50), (1, 200)):
        guidance.update_step(epoch, step)
        out = guidance(rgb, utils, **double.VIEWS)
        values.append((out["max_step"], out["guidance_scale"]))
    assert values == [(980.0, 101.0), (740.0, 101.0), (500.0, 54.5)]


def test_timesteps_stay_in_range_at_the_very_top(make: Callable[..., Any], rgb: Tensor, utils: Any) -> None:
    out = make(min_step_percent=1.0, max_step_percent=1.0)(rgb, utils, **double.VIEWS)
    assert out["max_step"] == 999.0


def test_previews_are_images_and_leave_the_draws_alone(make: Callable[..., Any], rgb: Tensor, perp_neg: Any) -> None:
    guidance, other = make(max_items_eval=1, guidance_scale=2.0), make(guidance_scale=2.0)
    images = guidance(rgb, perp_neg, guidance_eval=True, **double.VIEWS)["eval"]
    assert images["bs"] == 1
    assert len(images["noise_levels"]) == len(images["texts"]) == 1
    for name in ("imgs_noisy", "imgs_1step", "imgs_1orig", "imgs_final"):
        assert images[name].shape == (1, 16, 16, 3)
        assert 0 <= float(images[name].min()) <= float(images[name].max()) <= 1
    plain = other(rgb, perp_neg, **double.VIEWS)
    again = guidance(rgb, perp_neg, **double.VIEWS)
    assert again["nfe"] == 2 * plain["nfe"]  # previews are not counted
    other(rgb, perp_neg, **double.VIEWS)
    assert torch.equal(guidance._carv.generator.get_state(), other._carv.generator.get_state())


def test_systems_that_render_latents_can_show_them(make: Callable[..., Any], sd_teacher: Any) -> None:
    z = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    guidance = make()
    expected = sd_teacher.decode(torch.nn.functional.interpolate(z, (8, 8), mode="bilinear", align_corners=False))
    torch.testing.assert_close(guidance.decode_latents(z), expected)
    assert guidance.decode_latents(z, latent_height=8, latent_width=16).shape == (1, 3, 16, 32)
    assert guidance.decode_latents(z, 8, 16).shape == (1, 3, 16, 32)


def test_a_system_may_set_the_range_of_timesteps_itself(make: Callable[..., Any], rgb: Tensor, utils: Any) -> None:
    guidance = make(sqrt_anneal=True)
    guidance.set_min_max_steps(0.3, 0.4)
    out = guidance(rgb, utils, **double.VIEWS)
    assert (out["min_step"], out["max_step"]) == (300.0, 400.0)


def test_the_built_in_model_sets_the_sizes(host: Any) -> None:
    guidance = host.modules["carv-stable-diffusion-guidance"]({"pretrained_model_name_or_path": "carv-tiny"})
    teacher = guidance._carv.teacher
    assert (teacher.image_size, teacher.latent_size) == (64, 16)
    images = torch.rand(1, 32, 32, 3).requires_grad_()
    text = torch.zeros(1, 20, teacher.unet.config.cross_attention_dim)
    batch = {name: value[:1] if isinstance(value, Tensor) else value for name, value in double.VIEWS.items()}
    out = guidance(images, double.PromptUtils(text, text), **batch)
    assert guidance._carv.estimator.options.num_draws == 4
    assert torch.autograd.grad(out["loss_sds"], images)[0].abs().max() > 0
