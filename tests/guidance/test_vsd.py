"""Variational score distillation against its papers' formula, the exact Gaussian teacher, and its own learning."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from exact import SCORE_MEANS, GaussianScore, guided, sds_gradient
from test_lora import merged, trained
from torch import Tensor

from carv_3d.core.costs import CostMeter
from carv_3d.core.estimator import Draws
from carv_3d.errors import CarvError
from carv_3d.guidance.vsd import VSDGuidance, VSDOptions
from carv_3d.objectives.score_matching import squared_errors
from carv_3d.teachers.gaussian import GaussianTeacher
from carv_3d.teachers.lora_score import LoraScore
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.teachers.timed import TimedTeacher

B = 2


def some_draws(k: int, seed: int = 0, low: int = 20) -> Draws:
    g = torch.Generator().manual_seed(seed)
    return Draws(torch.randint(low, 981, (B, k), generator=g), torch.randn(B, k, 4, 8, 8, generator=g))


def gradient(loss: Tensor, rgb: Tensor) -> Tensor:
    return torch.autograd.grad(loss, rgb, retain_graph=True)[0]


def textbook(
    teacher: Any, unet: Any, batch: tuple[Tensor, ...], draws: Draws, scale: float, scale_lora: float
) -> Tensor:
    """threestudio's gradient on the image, for a v-predicting LoRA model, draw by draw."""
    rgb, text, null, own, camera = batch
    total, k = torch.zeros_like(rgb), draws.t.shape[1]
    for r in range(B):
        for j in range(k):
            z = teacher.encode(rgb.permute(0, 3, 1, 2)[r : r + 1], sample=False)
            t, eps = draws.t[r, j : j + 1], draws.eps[r, j : j + 1]
            abar = teacher.schedule.alphas_cumprod[t]
            with torch.no_grad():
                z_t = abar.sqrt() * z + (1 - abar).sqrt() * eps
                e, e0 = (teacher.eps_hat(z_t, t, y[r : r + 1]) for y in (text, null))
                labels = camera[r].reshape(1, 16)
                v, v0 = (unet(z_t, t, encoder_hidden_states=own, class_labels=c).sample for c in (labels, 0 * labels))
                with_camera, without = ((1 - abar).sqrt() * z_t + abar.sqrt() * x for x in (v, v0))
                f = (1 - abar) * (e0 + scale * (e - e0) - (without + scale_lora * (with_camera - without)))
            total += torch.autograd.grad(z, rgb, f)[0] / (B * k)
    return total


@pytest.mark.parametrize(("k", "scale_lora"), [(1, 1.0), (1, 2.5), (1, 0.0), (3, 1.0)])
def test_gradient_is_the_textbooks(
    teacher: Any, lora_score: LoraScore, batch: Any, v_prediction_folder: Path, k: int, scale_lora: float
) -> None:
    unet = merged(v_prediction_folder, trained(lora_score.lora))
    options = VSDOptions(
        num_draws=k, proposal="uniform", guidance_scale_lora=scale_lora, vae_sample="mode", max_batch=2
    )
    draws = some_draws(k)
    out = VSDGuidance(teacher, lora_score, options)(*batch, step=0, draws=draws)
    expected = textbook(teacher, unet, batch, draws, 7.5, scale_lora)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(gradient(out.loss_vsd, batch[0]), expected, rtol=1e-3, atol=1e-5)
    assert out.scalars["guidance_scale"] == 7.5  # uncond + s (text - uncond), as in threestudio's own


def test_each_loss_reaches_its_own_side_only(teacher: Any, lora_score: LoraScore, batch: Any) -> None:
    trained(lora_score.lora)
    out = VSDGuidance(teacher, lora_score, VSDOptions(seed=0, vae_sample="mode"))(*batch, step=0)
    first = torch.autograd.grad(out.loss_vsd, lora_score.parameters(), retain_graph=True, allow_unused=True)
    assert all(g is None for g in first)
    assert torch.autograd.grad(out.loss_lora, batch[0], retain_graph=True, allow_unused=True) == (None,)
    assert all(bool(g.any()) for g in torch.autograd.grad(out.loss_lora, lora_score.parameters()))


@pytest.mark.parametrize(("k", "max_batch"), [(1, 4), (3, 4), (3, 1)])
def test_the_loras_loss_is_the_mean_squared_error(
    teacher: Any, lora_score: LoraScore, batch: Any, k: int, max_batch: int
) -> None:
    trained(lora_score.lora)
    options = VSDOptions(
        num_draws=1, lora_n_timestamp_samples=k, lora_cfg_training=False, lora_max_batch=max_batch, vae_sample="mode"
    )
    draws = some_draws(k, seed=3, low=0)
    out = VSDGuidance(teacher, lora_score, options)(*batch, step=0, lora_draws=draws)
    rgb, _, _, own, camera = batch
    z = teacher.encode(rgb.permute(0, 3, 1, 2), sample=False).detach()
    denoiser, losses = lora_score.denoiser, []
    for r in range(B):
        for j in range(k):
            t, eps = draws.t[r, j : j + 1], draws.eps[r, j : j + 1]
            abar = denoiser.schedule.alphas_cumprod[t]
            z_t = abar.sqrt() * z[r : r + 1] + (1 - abar).sqrt() * eps
            with lora_score.lora.active(camera[r].reshape(1, 16)):
                v = denoiser.unet(z_t, t, encoder_hidden_states=own).sample
            losses.append((v - (abar.sqrt() * eps - (1 - abar).sqrt() * z[r : r + 1])).square().mean())
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(out.loss_lora, expected, rtol=1e-4, atol=1e-5)
    actual = torch.autograd.grad(out.loss_lora, lora_score.parameters())
    for a, b in zip(actual, torch.autograd.grad(expected, lora_score.parameters())):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_tenth_of_the_loras_draws_see_no_camera(teacher: Any, lora_score: LoraScore, batch: Any) -> None:
    cameras: list[Tensor] = []
    predict = lora_score.predict

    def spy(z_t: Tensor, t: Tensor, text: Tensor, camera: Tensor) -> Tensor:
        if z_t.shape[0] == 400:  # in training; the other calls are of the two draws of f
            cameras.append(camera)
        return predict(z_t, t, text, camera)

    lora_score.predict = spy  # type: ignore[method-assign]
    for drop in (True, False):
        options = VSDOptions(num_draws=1, lora_n_timestamp_samples=200, lora_max_batch=400, lora_cfg_training=drop)
        VSDGuidance(teacher, lora_score, options)(*batch, step=0, generator=torch.Generator().manual_seed(1))
    with_drop, without = (1 - float(c.any(1).float().mean()) for c in cameras)
    assert abs(with_drop - 0.1) < 4 * (0.1 * 0.9 / 400) ** 0.5
    assert without == 0


def test_the_image_loss_is_threestudios(teacher: Any, lora_score: LoraScore, batch: Any) -> None:
    rgb, text, null, own, camera = batch
    options = VSDOptions(num_draws=2, guidance_scale=2.0, use_img_loss=True, vae_sample="mode")
    draws = some_draws(2)
    out = VSDGuidance(teacher, lora_score, options)(*batch, step=0, draws=draws)
    expected = torch.zeros_like(rgb)
    with torch.no_grad():
        z = teacher.encode(rgb.permute(0, 3, 1, 2), sample=False)
        for k in range(2):
            t, eps = draws.t[:, k], draws.eps[:, k]
            abar = teacher.schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
            z_t = abar.sqrt() * z + (1 - abar).sqrt() * eps
            sides = (
                lora_score.eps_hat(z_t, t, own.expand(B, -1, -1), camera.flatten(1)),
                guided(teacher, z_t, t, text, null, 2.0),
            )
            est, pre = (teacher.decode((z_t - (1 - abar).sqrt() * e) / abar.sqrt()) for e in sides)
            expected += ((1 - abar) * (est - pre) * (abar / (1 - abar)).sqrt()).permute(0, 2, 3, 1) / 2 / B
    assert out.loss_vsd_img is not None
    torch.testing.assert_close(gradient(out.loss_vsd_img, rgb), expected, rtol=1e-3, atol=1e-5)


# --- unbiased


@pytest.mark.parametrize("proposal", ["uniform", "weight", "adaptive"])
@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("k", [4, 8])
def test_unbiased_for_the_exact_gradient(proposal: str, antithetic: bool, k: int) -> None:
    # E[w (eps_teacher - eps_lora)]: eps cancels, so it is the difference of two known SDS gradients
    teacher, lora_score = GaussianTeacher(SCORE_MEANS, std=0.4, image_size=2), GaussianScore()
    z = torch.tensor([0.5, -1.0, 0.8, 0.1], dtype=torch.float64).view(1, 1, 2, 2)
    text, null = teacher.text_embeddings(["0"]), teacher.text_embeddings([""])
    R = 2000
    options = VSDOptions(
        num_draws=k, proposal=proposal, antithetic=antithetic, guidance_scale=4.0, max_batch=10**5, seed=k,
        lora_max_batch=10**5,
    )  # fmt: skip
    guidance = VSDGuidance(teacher, lora_score, options)
    rendered = z.expand(R, -1, -1, -1).permute(0, 2, 3, 1)
    for _ in range(3):  # something to adapt to
        out = guidance(rendered, text, null, text, torch.zeros(R, 16), step=0, rgb_as_latents=True)
    grads = out.sds.estimate.grad.flatten(1)
    ones = torch.zeros(1, 1, 1, dtype=torch.float64)
    expected = sds_gradient(teacher, z, text, null, 4.0) - sds_gradient(lora_score.model, z, ones)
    error = grads.std(0) / R**0.5
    assert ((grads.mean(0) - expected.flatten()).abs() < 4 * error).all()
    assert expected.abs().max() > 20 * error.max()  # tight enough to notice a wrong objective


def test_more_draws_train_the_lora_on_the_same_objective_with_less_noise(
    teacher: Any, lora_score: LoraScore, batch: Any
) -> None:
    trained(lora_score.lora)
    stats = {}
    for k in (1, 8):
        options = VSDOptions(num_draws=1, lora_n_timestamp_samples=k, lora_max_batch=16, vae_sample="mode", seed=5)
        guidance = VSDGuidance(teacher, lora_score, options)
        grads = []
        for _ in range(30):
            out = guidance(*batch, step=0)
            grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(out.loss_lora, lora_score.parameters())]))
        stats[k] = torch.stack(grads)
    difference = stats[1].mean(0) - stats[8].mean(0)
    spread = stats[1].var(0) / 30 + stats[8].var(0) / 30
    # |difference|^2 is its own expectation, tr(cov), within what a chi-square with few directions allows
    assert float(difference.square().sum()) < 4 * float(spread.sum())
    assert float(stats[8].var(0).sum()) < float(stats[1].var(0).sum()) / 5


# --- learning, cost, state


def test_the_lora_learns(teacher: Any, batch: Any) -> None:
    torch.manual_seed(0)
    lora_score = LoraScore(teacher)  # of the teacher itself
    options = VSDOptions(num_draws=1, lora_n_timestamp_samples=8, lora_max_batch=16, lora_cfg_training=False, seed=0)
    guidance = VSDGuidance(teacher, lora_score, options)
    optimizer = torch.optim.AdamW(lora_score.parameters(), lr=3e-2)
    text, held_out = batch[3].expand(B, -1, -1), some_draws(24, seed=100, low=0)
    t = held_out.t[:, 0]
    with torch.no_grad():
        z = teacher.encode(batch[0].permute(0, 3, 1, 2), sample=False)
        plain = teacher.eps_hat(z, t, text)
        repeated = [x.repeat_interleave(24, dim=0) for x in (z, text, batch[4].flatten(1))]
        fixed = (repeated[0], held_out.t.flatten(), held_out.eps.flatten(0, 1), repeated[1], repeated[2])
        before = float(squared_errors(lora_score, *fixed).mean())
    for step in range(40):
        optimizer.zero_grad()
        guidance(*batch, step=step).loss_lora.backward()
        optimizer.step()
    with torch.no_grad():
        after = float(squared_errors(lora_score, *fixed).mean())
        assert torch.equal(teacher.eps_hat(z, t, text), plain)  # the teacher has learnt nothing
    # a random UNet leaves a LoRA little to gain: from 292 to 264, where predicting 0 everywhere would have 259
    assert after < 0.95 * before
    assert not lora_score.lora.untouched


@pytest.mark.parametrize(("k", "k_lora"), [(1, 1), (4, 3), (8, 8)])
def test_one_encode_and_the_nfe_whatever_k(
    teacher: Any, lora_score: LoraScore, batch: Any, k: int, k_lora: int
) -> None:
    calls: dict[str, list[int]] = {"encode": [], "decode": [], "teacher": [], "lora_score": []}
    for name, module in (
        ("encode", teacher.vae.encoder),
        ("decode", teacher.vae.decoder),
        ("teacher", teacher.unet),
        ("lora_score", lora_score.denoiser.unet),
    ):
        module.register_forward_hook(
            lambda m, i, o, name=name: calls[name].append((o if isinstance(o, Tensor) else o[0]).shape[0])
        )
    meter = CostMeter()
    options = VSDOptions(num_draws=k, lora_n_timestamp_samples=k_lora, max_batch=8, lora_max_batch=4, seed=0)
    out = VSDGuidance(TimedTeacher(teacher, meter), lora_score, options, meter)(*batch, step=0)
    assert (calls["encode"], calls["decode"]) == ([B], [])
    assert sum(calls["teacher"]) == 2 * B * k
    assert sum(calls["lora_score"]) == B * k + B * k_lora
    assert meter.nfe == 3 * B * k + B * k_lora
    assert set(meter.seconds) == {"encode", "denoise", "train_lora"}
    assert (out.scalars["K"], out.scalars["K_lora"]) == (k, k_lora)


@pytest.mark.parametrize("proposal", ["weight", "adaptive"])
def test_a_resumed_run_equals_one_that_was_not_stopped(
    v_prediction_folder: Path, teacher: Any, batch: Any, proposal: str
) -> None:
    def build(seed: int) -> tuple[VSDGuidance, LoraScore, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        lora_score = LoraScore(StableDiffusionTeacher.load(str(v_prediction_folder), device="cpu"))
        options = VSDOptions(num_draws=2, proposal=proposal, lora_n_timestamp_samples=2, seed=seed)
        return VSDGuidance(teacher, lora_score, options), lora_score, torch.optim.Adam(lora_score.parameters(), lr=1e-2)

    def step(guidance: VSDGuidance, optimizer: torch.optim.Optimizer, i: int) -> tuple[Tensor, float]:
        out = guidance(*batch, step=i)
        optimizer.zero_grad()
        out.loss_lora.backward()
        optimizer.step()
        return gradient(out.loss_vsd, batch[0]), float(out.loss_lora.detach())

    first, lora_score, optimizer = build(0)
    for i in range(3):
        step(first, optimizer, i)
    second, other, another = build(99)
    second.load_state_dict(first.state_dict())
    other.lora.load_state_dict(lora_score.lora.state_dict())
    another.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for i in (3, 4):
        (grad, loss), (grad_2, loss_2) = step(first, optimizer, i), step(second, another, i)
        assert torch.equal(grad, grad_2)
        assert loss == loss_2


def test_a_batch_that_is_not_finite_does_not_train(teacher: Any, lora_score: LoraScore, batch: Any) -> None:
    options = VSDOptions(num_draws=1, lora_n_timestamp_samples=2, lora_max_batch=1, vae_sample="mode")
    draws = some_draws(2, low=0)
    draws.eps[0, 0] = float("nan")
    out = VSDGuidance(teacher, lora_score, options)(*batch, step=0, draws=some_draws(1), lora_draws=draws)
    assert out.scalars["nonfinite_lora"] == 1.0
    assert bool(torch.isfinite(out.loss_lora))
    grads = torch.autograd.grad(out.loss_lora, lora_score.parameters())
    assert all(bool(torch.isfinite(g).all()) for g in grads)
    assert any(bool(g.any()) for g in grads)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: (*b[:4], b[4][:1]), r"camera has shape \(1, 16\)"),
        (lambda b: (*b[:4], b[4].flatten()), r"camera has shape \(32,\)"),
        (lambda b: (*b[:4], b[4].sum()), r"camera has shape \(1,\)"),
        (lambda b: (*b[:4], b[4][:, :3]), r"camera has shape \(2, 12\)"),
        (lambda b: (*b[:3], b[3][0], b[4]), r"prompts_lora \(20, 16\)"),
    ],
)
def test_wrong_shapes_are_named(teacher: Any, lora_score: LoraScore, batch: Any, change: Any, said: str) -> None:
    with pytest.raises(CarvError, match=said):
        VSDGuidance(teacher, lora_score)(*change(batch), step=0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lora_n_timestamp_samples": 0}, "lora_n_timestamp_samples is 0"),
        ({"lora_rank": 1.5}, "lora_rank is 1.5"),
        ({"lora_max_batch": True}, "lora_max_batch is True"),
        ({"lora_cfg_training": 1}, "lora_cfg_training is 1"),
        ({"camera_condition_type": "intrinsics"}, "one of extrinsics, mvp"),
        ({"guidance_scale_lora": "much"}, "guidance_scale_lora is 'much'"),
        ({"use_sjc": True}, "use_sjc is no part"),
        ({"use_recon_loss": True}, "use_recon_loss is no part"),
        ({"num_draws": 0}, "num_draws is 0"),
    ],
)
def test_options_that_cannot_be_meant(values: dict[str, Any], said: str) -> None:
    with pytest.raises(CarvError, match=said):
        VSDOptions(**values)


# --- ranks, and the wires of the options


def test_the_loras_draws_join_the_ranks(teacher: Any, lora_score: LoraScore) -> None:
    options = VSDOptions(num_draws=2, lora_n_timestamp_samples=2, stratify="global", seed=0)
    ranks = [VSDGuidance(teacher, lora_score, options) for _ in range(2)]
    for rank, guidance in enumerate(ranks):
        guidance.join_ranks(rank, 2)
        assert guidance.sds.estimator.options.rank == guidance.training.estimator.options.rank == rank
        assert guidance.training.estimator.options.world_size == 2
    z = torch.zeros(1, 4, 8, 8)
    drawn = [guidance.training.draw(z, guidance.sds.generator).t for guidance in ranks]
    strata = sorted(int(4 * x / 1000) for x in torch.cat(drawn).flatten().tolist())
    assert strata == [0, 1, 2, 3]  # one timestep in each, two on either rank


def test_schedules_of_vsd_count_steps_or_epochs(teacher: Any, lora_score: LoraScore, batch: Any) -> None:
    trained(lora_score.lora)
    draws = some_draws(1)

    def run(scale: Any, step: int, epoch: int) -> Any:
        options = VSDOptions(num_draws=1, guidance_scale=scale, guidance_scale_lora=scale, vae_sample="mode")
        return VSDGuidance(teacher, lora_score, options)(*batch, step=step, epoch=epoch, draws=draws)

    for scale, step, epoch in (([0, 2.0, 4.0, 10], 5, 0), ([0, 2.0, 4.0, 10.0], 0, 5)):
        out = run(scale, step, epoch)
        assert (out.scalars["guidance_scale"], out.scalars["guidance_scale_lora"]) == (3.0, 3.0)
        assert torch.equal(out.sds.estimate.grad, run(3.0, 0, 0).sds.estimate.grad)
        assert not torch.equal(out.sds.estimate.grad, run(scale, 0, 0).sds.estimate.grad)


@pytest.mark.parametrize(
    ("values", "holds"),
    [
        ({"lora_n_timestamp_samples": 6}, lambda v: v.training.estimator.options.num_draws == 6),
        ({"lora_max_batch": 3}, lambda v: v.training._max_batch == 3),
        ({"stratify": "none"}, lambda v: v.training.estimator.options.stratify == "none"),
        (
            {"antithetic": True, "num_draws": 2, "lora_n_timestamp_samples": 2},
            lambda v: v.training.estimator.options.antithetic and v.sds.estimator.options.antithetic,
        ),
        ({"num_draws": 5}, lambda v: v.sds.estimator.options.num_draws == 5),
        ({"max_batch": 7}, lambda v: v.sds.estimator.options.max_batch == 7),
        ({"proposal": "adaptive"}, lambda v: v.sds.estimator.proposal.name == "adaptive"),
        ({"weighting_strategy": "uniform"}, lambda v: bool((v.sds.weights == 1).all())),
        ({"min_step_percent": 0.1}, lambda v: v.sds.estimator.proposal.min_step == 100),
        ({"max_step_percent": 0.7}, lambda v: v.sds.estimator.proposal.max_step == 700),
        ({"objective": "vsd_hifa"}, lambda v: v.sds.objective.image is not None),
        ({"use_img_loss": True}, lambda v: v.sds.objective.image is not None),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_an_option_reaches_its_place(teacher: Any, lora_score: LoraScore, values: Any, holds: Any) -> None:
    assert not holds(VSDGuidance(teacher, lora_score, VSDOptions()))
    assert holds(VSDGuidance(teacher, lora_score, VSDOptions(**values)))


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_the_loras_own_guidance_takes_as_many_samples_as_it_needs(
    teacher: Any, lora_score: LoraScore, batch: Any, scale: float
) -> None:
    meter = CostMeter()
    options = VSDOptions(num_draws=3, guidance_scale_lora=scale, seed=0)
    VSDGuidance(teacher, lora_score, options, meter)(*batch, step=0)
    assert meter.nfe == B * 3 * (2 if scale == 2.5 else 1) + B  # and the LoRA's training
