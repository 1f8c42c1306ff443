"""Guidance against score distillation as the papers write it, on a small random model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from carv_3d.core.estimator import Draws
from carv_3d.errors import CarvError
from carv_3d.guidance.sds import GuidanceOptions, SDSGuidance

B = 2


@pytest.fixture
def batch(sd_teacher: Any) -> tuple[Tensor, Tensor, Tensor]:
    rgb = torch.rand(B, 16, 16, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    return rgb, sd_teacher.text_embeddings(["a red mug", "a cup"]), sd_teacher.text_embeddings(["", ""])


def some_draws(k: int, seed: int = 0) -> Draws:
    g = torch.Generator().manual_seed(seed)
    t = torch.randint(20, 981, (B, k), generator=g)
    return Draws(t=t, eps=torch.randn(B, k, 4, 8, 8, generator=g), weights=0.5 + torch.rand(B, k, generator=g))


def gradient(loss: Tensor, rgb: Tensor) -> Tensor:
    return torch.autograd.grad(loss, rgb, retain_graph=True)[0]


def textbook(
    teacher: Any, batch: tuple[Tensor, Tensor, Tensor], draws: Draws, scale: float, clip: float = float("inf")
) -> Tensor:
    """The gradient w.r.t. rgb, one draw at a time: mean_r J_r^T mean_k (p/q) clamp(w (eps_hat - eps))."""
    rgb, cond, uncond = batch
    total = torch.zeros_like(rgb)
    k = draws.t.shape[1]
    for r in range(B):
        for j in range(k):
            z = teacher.encode(rgb.permute(0, 3, 1, 2)[r : r + 1], sample=False)
            t, eps = draws.t[r, j : j + 1], draws.eps[r, j : j + 1]
            abar = teacher.schedule.alpha(t).square()
            with torch.no_grad():
                z_t = abar.sqrt() * z + (1 - abar).sqrt() * eps
                text, null = (teacher.eps_hat(z_t, t, y[r : r + 1]) for y in (cond, uncond))
                f = ((1 - abar) * (null + scale * (text - null) - eps)).clamp(-clip, clip)
            (pulled,) = torch.autograd.grad(z, rgb, grad_outputs=draws.weights[r, j] * f)
            total += pulled / (B * k)
    return total


@pytest.mark.parametrize(("k", "max_batch"), [(1, 16), (3, 16), (3, 2), (3, 1)])
def test_gradient_is_the_textbooks(sd_teacher: Any, batch: Any, k: int, max_batch: int) -> None:
    guidance = SDSGuidance(
        sd_teacher,
        GuidanceOptions(guidance_scale=7.5, num_draws=k, max_batch=max_batch, vae_sample="mode"),
    )
    draws = some_draws(k)
    out = guidance(*batch, step=0, draws=draws)
    expected = textbook(sd_teacher, batch, draws, 7.5)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(gradient(out.loss_sds, batch[0]), expected, rtol=1e-3, atol=1e-5)


def test_grad_clip_cuts_each_draw_before_the_mean(sd_teacher: Any, batch: Any) -> None:
    options = GuidanceOptions(guidance_scale=7.5, num_draws=3, grad_clip=[0.5, 0.1, 10], vae_sample="mode")
    draws = some_draws(3)
    for step, clip in ((0, 0.5), (10, 0.1)):
        out = SDSGuidance(sd_teacher, options)(*batch, step=step, draws=draws)
        expected = textbook(sd_teacher, batch, draws, 7.5, clip)
        torch.testing.assert_close(gradient(out.loss_sds, batch[0]), expected, rtol=1e-3, atol=1e-5)
        assert out.scalars["grad_clip"] == pytest.approx(clip)


@pytest.mark.parametrize("var_red", [True, False])
def test_score_jacobian_chaining_is_its_papers(sd_teacher: Any, batch: Any, var_red: bool) -> None:
    """grad = -(D(zs) - y) / s, or -(D(zs) - zs) / s without var_red, with zs = y + s eps, s = sigma / alpha."""
    rgb, cond, uncond = batch
    draws = some_draws(3)
    options = GuidanceOptions(guidance_scale=7.5, num_draws=3, use_sjc=True, var_red=var_red, vae_sample="mode")
    out = SDSGuidance(sd_teacher, options)(*batch, step=0, draws=draws)
    y = sd_teacher.encode(rgb.permute(0, 3, 1, 2), sample=False)
    expected = torch.zeros_like(y)
    with torch.no_grad():
        for k in range(3):
            t, eps = draws.t[:, k], draws.eps[:, k]
            abar = sd_teacher.schedule.alpha(t).square().view(-1, 1, 1, 1)
            s = ((1 - abar) / abar).sqrt()
            zs = y + s * eps
            text, null = (sd_teacher.eps_hat(zs / (1 + s**2).sqrt(), t, e) for e in (cond, uncond))
            denoised = zs - s * (null + 7.5 * (text - null))
            grad = -(denoised - (y if var_red else zs)) / s
            expected += draws.weights[:, k].view(-1, 1, 1, 1) * grad / 3
    expected = torch.autograd.grad(y, rgb, expected / B)[0]
    torch.testing.assert_close(gradient(out.loss_sds, rgb), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("clip", [None, 0.2])
def test_image_loss_is_hifas(sd_teacher: Any, batch: Any, clip: float | None) -> None:
    rgb, cond, uncond = batch
    draws = some_draws(3)
    options = GuidanceOptions(
        guidance_scale=2.0, num_draws=3, max_batch=4, use_img_loss=True, vae_sample="mode", grad_clip=clip
    )
    out = SDSGuidance(sd_teacher, options)(*batch, step=0, draws=draws)
    images = rgb.detach().permute(0, 3, 1, 2)
    expected = torch.zeros_like(images)
    with torch.no_grad():
        y = sd_teacher.encode(images, sample=False)
        for k in range(3):
            t, eps = draws.t[:, k], draws.eps[:, k]
            abar = sd_teacher.schedule.alpha(t).square().view(-1, 1, 1, 1)
            z_t = abar.sqrt() * y + (1 - abar).sqrt() * eps
            text, null = (sd_teacher.eps_hat(z_t, t, e) for e in (cond, uncond))
            z0 = (z_t - (1 - abar).sqrt() * (null + 2.0 * (text - null))) / abar.sqrt()
            grad = (1 - abar) * (images - sd_teacher.decode(z0)) * (abar / (1 - abar)).sqrt()
            expected += draws.weights[:, k].view(-1, 1, 1, 1) * grad.clamp(-(clip or 9e9), clip or 9e9) / 3 / B
    assert out.loss_sds_img is not None
    actual = gradient(out.loss_sds_img, rgb).permute(0, 3, 1, 2)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)
    assert float(out.loss_sds_img.detach()) == pytest.approx(0.5 * B * float(expected.square().sum()), rel=1e-3)
    with pytest.raises(CarvError, match="use_img_loss needs images"):
        SDSGuidance(sd_teacher, options)(
            torch.rand(B, 8, 8, 4, requires_grad=True), cond, uncond, step=0, rgb_as_latents=True
        )


def test_threestudios_convention_is_the_standard_one_at_one_more(sd_teacher: Any, batch: Any) -> None:
    draws = some_draws(2)
    grads = []
    for convention, scale in (("threestudio", 7.5), ("standard", 8.5)):
        options = GuidanceOptions(guidance_scale=scale, cfg_convention=convention, num_draws=2, vae_sample=False)
        out = SDSGuidance(sd_teacher, options)(*batch, step=0, draws=draws)
        assert out.scalars["guidance_scale"] == 8.5
        grads.append(gradient(out.loss_sds, batch[0]))
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("k", [1, 4, 10])
def test_one_encode_and_one_backward_whatever_k(sd_teacher: Any, batch: Any, k: int) -> None:
    calls: dict[str, list[int]] = {"encode": [], "backward": [], "unet": [], "decode": []}

    def encoded(module: Any, inputs: Any, output: Tensor) -> None:
        calls["encode"].append(output.shape[0])
        output.register_hook(lambda grad: calls["backward"].append(grad.shape[0]))

    hooks = [
        sd_teacher.vae.encoder.register_forward_hook(encoded),
        sd_teacher.vae.decoder.register_forward_hook(lambda m, i, o: calls["decode"].append(o.shape[0])),
        sd_teacher.unet.register_forward_hook(lambda m, i, o: calls["unet"].append(o[0].shape[0])),
    ]
    guidance = SDSGuidance(sd_teacher, GuidanceOptions(num_draws=k, max_batch=8, seed=0))
    out = guidance(*batch, step=0)
    out.loss_sds.backward()
    for hook in hooks:
        hook.remove()
    assert (calls["encode"], calls["backward"], calls["decode"]) == ([B], [B], [])
    assert sum(calls["unet"]) == 2 * B * k  # cond and uncond
    assert max(calls["unet"]) <= 2 * 8
    assert out.scalars["samples"] == B * k


def test_perp_neg_reaches_the_right_samples(sd_teacher: Any, batch: Any) -> None:
    # two renders at once are two renders one by one, halved by the mean over renders
    rgb, cond, uncond = batch
    g = torch.Generator().manual_seed(3)
    negatives = (torch.randn(B, 2, *cond.shape[1:], generator=g), -torch.rand(B, 2, generator=g))
    options = GuidanceOptions(guidance_scale=7.5, num_draws=2, vae_sample=False, cfg_convention="threestudio")
    guidance, draws = SDSGuidance(sd_teacher, options), some_draws(2)
    both = guidance(*batch, step=0, draws=draws, negatives=negatives)
    assert both.scalars["guidance_scale"] == 7.5
    plain = gradient(guidance(*batch, step=0, draws=draws).loss_sds, rgb)
    for i in range(B):
        sample = slice(i, i + 1)
        single = guidance(
            rgb[sample],
            cond[sample],
            uncond[sample],
            step=0,
            draws=Draws(t=draws.t[sample], eps=draws.eps[sample], weights=draws.weights[sample]),
            negatives=(negatives[0][sample], negatives[1][sample]),
        )
        expected = gradient(single.loss_sds, rgb)[i] / B
        torch.testing.assert_close(gradient(both.loss_sds, rgb)[i], expected, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(gradient(both.loss_sds, rgb), plain, rtol=1e-2)


def test_other_sizes_are_resized_and_latents_are_taken_as_they_are(sd_teacher: Any, batch: Any) -> None:
    _, cond, uncond = batch
    options, draws = GuidanceOptions(num_draws=2, vae_sample=False), some_draws(2)
    guidance = SDSGuidance(sd_teacher, options)
    small = torch.rand(B, 10, 12, 3).requires_grad_()
    large = F.interpolate(small.permute(0, 3, 1, 2), (16, 16), mode="bilinear").permute(0, 2, 3, 1)
    first, second = (guidance(x, cond, uncond, step=0, draws=draws).loss_sds for x in (small, large))
    torch.testing.assert_close(gradient(first, small), gradient(second, small))
    latents = torch.randn(B, 8, 8, 4).requires_grad_()
    out = guidance(latents, cond, uncond, step=0, draws=draws, rgb_as_latents=True)
    expected = (out.estimate.weights[..., None, None, None] * out.estimate.residual).mean(1) / B
    torch.testing.assert_close(gradient(out.loss_sds, latents), expected.permute(0, 2, 3, 1))


def test_recon_loss_is_asked_for_and_known(sd_teacher: Any, batch: Any) -> None:
    guidance = SDSGuidance(sd_teacher, GuidanceOptions(num_draws=1, vae_sample=False))
    assert guidance(*batch, step=0).loss_recon is None
    out = guidance(*batch, step=0, with_recon=True)
    x = batch[0].permute(0, 3, 1, 2)
    expected = (x - sd_teacher.decode(sd_teacher.encode(x, sample=False), clamp=False)).square().mean()
    assert out.loss_recon is not None
    torch.testing.assert_close(out.loss_recon, expected)
    torch.testing.assert_close(gradient(out.loss_recon, batch[0]), gradient(expected, batch[0]))
    with pytest.raises(CarvError, match="loss_recon needs images"):
        guidance(torch.zeros(B, 8, 8, 4, requires_grad=True), *batch[1:], step=0, rgb_as_latents=True, with_recon=True)


def test_vae_sample_is_drawn_once_per_render_from_the_given_generator(sd_teacher: Any, batch: Any) -> None:
    recorded: list[Tensor] = []
    original = sd_teacher.encode
    spy = type("Spy", (), {})()
    spy.__dict__.update(sd_teacher.__dict__)
    spy.eps_hat = sd_teacher.eps_hat

    def encode(*args: Any, **kwargs: Any) -> Tensor:
        recorded.append(original(*args, **kwargs))
        return recorded[-1]

    spy.encode = encode
    guidance = SDSGuidance(spy, GuidanceOptions(num_draws=3))
    for seed in (7, 7, 8):
        guidance(*batch, step=0, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(recorded[0], recorded[1])
    assert not torch.equal(recorded[0], recorded[2])


def test_timesteps_follow_the_schedule(sd_teacher: Any, batch: Any) -> None:
    options = GuidanceOptions(
        min_step_percent=0.0, max_step_percent=[1.0, 0.1, 10], num_draws=8, proposal="uniform", seed=0
    )
    guidance = SDSGuidance(sd_teacher, options)
    for step, last in ((0, 999), (10, 100)):
        out = guidance(*batch, step=step)
        t = out.estimate.t
        assert int(t.min()) >= 0
        assert last // 2 < int(t.max()) <= last  # eight strata reach the upper half
        assert (out.scalars["min_step"], out.scalars["max_step"]) == (0, last)
    single = SDSGuidance(sd_teacher, GuidanceOptions(sqrt_anneal=True, trainer_max_steps=100, num_draws=2))
    assert single(*batch, step=25).estimate.t.tolist() == [[500, 500]] * B
    assert single(*batch, step=10**6).estimate.t.tolist() == [[20, 20]] * B


@pytest.mark.parametrize("proposal", ["weight", "adaptive"])
def test_a_resumed_guidance_equals_one_that_was_not_stopped(sd_teacher: Any, batch: Any, proposal: str) -> None:
    def make(seed: int) -> SDSGuidance:
        return SDSGuidance(sd_teacher, GuidanceOptions(num_draws=4, proposal=proposal, seed=seed))

    first = make(0)
    for step in range(3):
        first(*batch, step=step)
    second = make(99)
    second.load_state_dict(first.state_dict())
    a, b = first(*batch, step=3), second(*batch, step=3)
    assert torch.equal(a.estimate.t, b.estimate.t)
    assert torch.equal(gradient(a.loss_sds, batch[0]), gradient(b.loss_sds, batch[0]))


def test_global_random_state_is_left_alone(sd_teacher: Any, batch: Any) -> None:
    guidance = SDSGuidance(sd_teacher, GuidanceOptions(seed=0))
    before = torch.get_rng_state()
    guidance(*batch, step=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rgb, c, u: (rgb[..., :2], c, u), r"images \(B, H, W, 3\), not \(2, 16, 16, 2\)"),
        (lambda rgb, c, u: (255 * rgb, c, u), r"rgb reaches 2\d\d.*divide by 255"),
        (lambda rgb, c, u: (rgb.detach().numpy(), c, u), "rgb is a ndarray; .* tensor"),
        (lambda rgb, c, u: (rgb, "a mug", u), "prompts_cond is 'a mug'; give embeddings"),
        (lambda rgb, c, u: (rgb, c[:, 0], u), "prompts_cond has shape"),
        (lambda rgb, c, u: (rgb, c, torch.cat([u, u])), r"prompts_uncond has shape \(4, 20, 16\)"),
    ],
)
def test_wrong_shapes_are_named(sd_teacher: Any, batch: Any, change: Any, said: str) -> None:
    with pytest.raises(CarvError, match=said):
        SDSGuidance(sd_teacher, GuidanceOptions())(*change(*batch), step=0)


def test_one_embedding_serves_all_renders(sd_teacher: Any, batch: Any) -> None:
    guidance, draws = SDSGuidance(sd_teacher, GuidanceOptions(vae_sample=False)), some_draws(4)
    rgb, cond, _ = batch
    null = sd_teacher.text_embeddings([""])
    a = guidance(rgb, cond[:1], null, step=0, draws=draws)
    b = guidance(rgb, cond[:1].repeat(B, 1, 1), null.repeat(B, 1, 1), step=0, draws=draws)
    assert torch.equal(a.estimate.residual, b.estimate.residual)


def test_ranks_of_one_seed_share_strata_and_not_noise(sd_teacher: Any, batch: Any) -> None:
    options = GuidanceOptions(num_draws=1, stratify="global", proposal="uniform", seed=0)
    ranks = [SDSGuidance(sd_teacher, options, rank=rank, world_size=2) for rank in (0, 1)]
    first, second = (guidance(*batch, step=0).estimate for guidance in ranks)
    assert not torch.equal(first.eps, second.eps)
    t = torch.cat([first.t, second.t]).flatten().sort().values  # four strata, one timestep in each
    assert [int(4 * (x - 20) / 961) for x in t.tolist()] == [0, 1, 2, 3]


def test_schedules_count_epochs_where_they_end_with_a_point(sd_teacher: Any, batch: Any) -> None:
    options = GuidanceOptions(
        guidance_scale=[0, 100.0, 7.5, 1.0], max_step_percent=[0, 0.9, 0.5, 1.0], grad_clip=[0, 2.0, 1.0, 1.0],
        proposal="uniform", num_draws=2, vae_sample=False,
    )  # fmt: skip
    draws = some_draws(2)
    for epoch, (scale, last, clip) in enumerate(((100.0, 900, 2.0), (7.5, 500, 1.0))):
        out = SDSGuidance(sd_teacher, options)(*batch, step=10**6, epoch=epoch, draws=draws)
        assert out.scale == out.scalars["guidance_scale"] == scale
        assert (out.scalars["max_step"], out.scalars["grad_clip"]) == (last, clip)
        plain = replace(options, guidance_scale=scale, max_step_percent=last / 1000, grad_clip=clip)
        expected = SDSGuidance(sd_teacher, plain)(*batch, step=0, draws=draws)
        assert torch.equal(out.estimate.grad, expected.estimate.grad)


@pytest.mark.parametrize("joined", ["before", "after"])
def test_each_rank_resumes_with_noise_of_its_own(sd_teacher: Any, joined: str) -> None:
    """Hosts save the first rank's state. All ranks with one noise would halve the worth of a second GPU, unnoticed."""
    options = GuidanceOptions(num_draws=1, seed=0)
    first = SDSGuidance(sd_teacher, options, rank=0, world_size=3)
    torch.rand(5, generator=first.generator)
    state = first.state_dict()

    def resumed(rank: int) -> torch.Tensor:
        ranks = {"rank": rank, "world_size": 3}
        other = SDSGuidance(sd_teacher, replace(options, seed=7), **(ranks if joined == "before" else {}))
        other.load_state_dict(state)
        other.join_ranks(**ranks)
        return torch.rand(4, generator=other.generator)

    noise = [resumed(rank) for rank in range(3)]
    assert torch.equal(noise[0], torch.rand(4, generator=first.generator))
    assert len({tuple(x.tolist()) for x in noise}) == 3
    assert torch.equal(noise[2], resumed(2))  # and it is reproducible


@pytest.mark.parametrize("world_size", [torch.ones(2), 0, 1.5])
def test_what_are_no_ranks_is_refused(sd_teacher: Any, world_size: Any) -> None:
    guidance = SDSGuidance(sd_teacher, GuidanceOptions(num_draws=1, seed=0))
    with pytest.raises(CarvError, match="world_size"):
        guidance.join_ranks(0, world_size)


def test_a_state_of_another_kind_of_device_is_said_to_begin_afresh(sd_teacher: Any, caplog: Any) -> None:
    state = SDSGuidance(sd_teacher, GuidanceOptions(seed=0)).state_dict()
    other = SDSGuidance(sd_teacher, GuidanceOptions(seed=1))
    before = other.generator.get_state()
    other.load_state_dict({**state, "generator_device": "cuda"})
    assert torch.equal(other.generator.get_state(), before)
    assert "of a cuda generator and this one is on cpu: the draws start afresh" in caplog.text


def test_a_rank_that_saved_its_own_state_resumes_its_own_noise(sd_teacher: Any) -> None:
    first, again = (SDSGuidance(sd_teacher, GuidanceOptions(seed=s), rank=1, world_size=2) for s in (0, 7))
    again.load_state_dict(first.state_dict())
    assert torch.equal(*(torch.rand(4, generator=guidance.generator) for guidance in (first, again)))
