"""Every objective through the guidance: its expectation, its gradient, the samples that the UNet runs, its options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact import expected_gradient
from torch import Tensor

from carv_3d.core.estimator import Draws
from carv_3d.errors import CarvError
from carv_3d.guidance.cfg import Conditioning
from carv_3d.guidance.sds import GuidanceOptions, GuidanceOutput, SDSGuidance
from carv_3d.guidance.vsd_options import VSDOptions
from carv_3d.teachers.gaussian import GaussianTeacher

MEANS = torch.tensor([[1.0, -0.5, 0.3, 0.8], [-0.7, 0.9, -0.2, 0.1], [0.2, 0.4, 1.1, -1.0]], dtype=torch.float64).view(
    3, 1, 2, 2
)
TEACHER = GaussianTeacher(MEANS, std=0.4)
Z = torch.tensor([0.5, -1.0, 0.8, 0.1], dtype=torch.float64).view(1, 1, 2, 2)
COND = Conditioning(*(TEACHER.text_embeddings([prompt]) for prompt in ("0", "", "1")))
LINEAR = ("sds", "sjc", "sjc_plain", "csd", "nfsd")  # all that need no trained score


def step(options: GuidanceOptions, R: int, repeats: int = 1, **more: Any) -> Tensor:
    """Latent gradients (repeats R, D) of renders that are all Z."""
    guidance = SDSGuidance(TEACHER, options)
    rendered = Z.expand(R, 1, 2, 2).permute(0, 2, 3, 1)
    outs = [guidance.guide(rendered, COND, step=0, rgb_as_latents=True, **more) for _ in range(repeats)]
    return torch.cat([out.estimate.grad.flatten(1) for out in outs])


def standard_errors(gradients: Tensor, expected: Tensor) -> tuple[float, float]:
    """(largest distance of the mean in standard errors, size of the error against the expectation's)."""
    error = gradients.std(0) / len(gradients) ** 0.5
    return float(((gradients.mean(0) - expected) / error).abs().max()), float(error.norm() / expected.norm())


@pytest.mark.parametrize("objective", LINEAR)
@pytest.mark.parametrize(
    ("proposal", "antithetic", "K"),
    [("uniform", False, 1), ("weight", False, 4), ("weight", True, 8), ("adaptive", True, 4)],
)
def test_unbiased_for_the_exact_gradient(objective: str, proposal: str, antithetic: bool, K: int) -> None:
    options = GuidanceOptions(
        objective=objective, num_draws=K, proposal=proposal, antithetic=antithetic, guidance_scale=3.0,
        max_batch=10**5, seed=K,
    )  # fmt: skip
    steps = 3 if proposal == "adaptive" else 1
    gradients = step(options, 3000 if K == 1 else 1500, steps)
    expected = expected_gradient(TEACHER, objective, Z, COND, s=3.0).flatten()
    apart, size = standard_errors(gradients[-1500:] if K > 1 else gradients, expected)
    assert apart < 4
    assert size < 0.1  # narrow enough to see another objective


@pytest.mark.parametrize("weighting", ["uniform", "fantasia3d"])
@pytest.mark.parametrize("objective", ["csd", "nfsd"])
def test_other_weightings_are_weightings_of_the_same(objective: str, weighting: str) -> None:
    options = GuidanceOptions(
        objective=objective, weighting_strategy=weighting, num_draws=4, guidance_scale=2.0, max_batch=10**5, seed=0
    )
    expected = expected_gradient(TEACHER, objective, Z, COND, s=2.0, weighting=weighting).flatten()
    apart, size = standard_errors(step(options, 1500), expected)
    assert apart < 4
    assert size < 0.1


def test_the_objectives_differ_by_more_than_a_test_can_miss() -> None:
    exact = {name: expected_gradient(TEACHER, name, Z, COND, s=3.0).flatten() for name in ("sds", "sjc", "csd", "nfsd")}
    for a in exact:
        for b in exact:
            assert a == b or float((exact[a] - exact[b]).norm()) > 0.4 * float(exact[a].norm()), (a, b)


# --- on a model with an encoder


@pytest.fixture
def batch(sd_teacher: Any) -> tuple[Tensor, Conditioning]:
    rgb = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    texts = (["a red mug", "a cup"], ["", ""], ["bad", "worse"])
    return rgb, Conditioning(*(sd_teacher.text_embeddings(text) for text in texts))


def some_draws(K: int) -> Draws:
    g = torch.Generator().manual_seed(1)
    t = torch.tensor([[150, 700, 300], [199, 200, 950]])[:, :K]
    return Draws(t, torch.randn(2, K, 4, 8, 8, generator=g), 0.5 + torch.rand(2, K, generator=g))


@pytest.mark.parametrize("objective", ["csd", "nfsd"])
@pytest.mark.parametrize("max_batch", [16, 4])
def test_the_gradient_is_the_papers(sd_teacher: Any, batch: Any, objective: str, max_batch: int) -> None:
    rgb, cond = batch
    options = GuidanceOptions(
        objective=objective, num_draws=3, guidance_scale=6.5, cfg_convention="threestudio", max_batch=max_batch,
        vae_sample="mode",
    )  # fmt: skip
    draws = some_draws(3)
    out = SDSGuidance(sd_teacher, options)(rgb, cond.text, cond.uncond, 0, prompts_negative=cond.negative, draws=draws)
    z = sd_teacher.encode(rgb.permute(0, 3, 1, 2), sample=False)
    expected = torch.zeros_like(z)
    with torch.no_grad():
        for r in range(2):
            for k in range(3):
                t, eps = draws.t[r, k : k + 1], draws.eps[r, k : k + 1]
                abar = sd_teacher.schedule.alphas_cumprod[t]
                z_t = abar.sqrt() * z[r : r + 1] + (1 - abar).sqrt() * eps
                text, null, bad = (
                    sd_teacher.eps_hat(z_t, t, x[r : r + 1]) for x in (cond.text, cond.uncond, cond.negative)
                )
                f = text - null
                if objective == "nfsd":
                    f = (null if int(t) < 200 else null - bad) + 7.5 * f
                expected[r] += ((1 - abar) * f)[0] * draws.weights[r, k] / 3
    actual = torch.autograd.grad(out.loss_sds, rgb)[0]
    torch.testing.assert_close(actual, torch.autograd.grad(z, rgb, expected / 2)[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("objective", "scale", "predictions"),
    [("sds", 7.5, 2), ("sds", 1.0, 1), ("sjc", 1.0, 1), ("csd", 1.0, 2), ("csd", 7.5, 2), ("nfsd", 7.5, 3),
     ("nfsd", 1.0, 2)],
)  # fmt: skip
def test_only_the_samples_that_are_needed_are_run(
    sd_teacher: Any, batch: Any, objective: str, scale: float, predictions: int
) -> None:
    rgb, cond = batch
    batches: list[int] = []
    hook = sd_teacher.unet.register_forward_hook(lambda m, i, o: batches.append(i[0].shape[0]))
    options = GuidanceOptions(objective=objective, guidance_scale=scale, num_draws=4, seed=0)
    SDSGuidance(sd_teacher, options).guide(rgb, cond, step=0)
    hook.remove()
    assert batches == [predictions * 2 * 4]


def test_the_flags_of_threestudio_name_objectives() -> None:
    for flags, objective in (
        ({}, "sds"),
        ({"use_sjc": True}, "sjc"),
        ({"use_sjc": True, "objective": "sjc"}, "sjc"),
        ({"use_sjc": True, "var_red": False}, "sjc_plain"),
        ({"var_red": False}, "sds"),  # as in threestudio, where it is read with use_sjc alone
        ({"use_img_loss": True}, "hifa"),
    ):
        options = GuidanceOptions(**flags)
        assert (options.objective, options.use_sjc, options.use_img_loss) == (objective, False, False)
    assert VSDOptions().objective == "vsd"
    assert VSDOptions(use_img_loss=True).objective == "vsd_hifa"


def test_flags_and_objectives_of_one_name_are_one_estimate(sd_teacher: Any, batch: Any) -> None:
    def run(**options: Any) -> GuidanceOutput:
        return SDSGuidance(sd_teacher, GuidanceOptions(num_draws=2, seed=3, **options)).guide(*batch, step=0)

    for flags, objective in (
        ({"use_sjc": True}, "sjc"),
        ({"use_sjc": True, "var_red": False}, "sjc_plain"),
        ({"use_img_loss": True}, "hifa"),
        ({"var_red": False}, "sds"),
    ):
        old, new = run(**flags), run(objective=objective)
        assert torch.equal(old.estimate.residual, new.estimate.residual)
        assert (old.loss_sds_img is None) == (new.loss_sds_img is None) == (objective != "hifa")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"objective": "vsd"}, "objective is 'vsd'; it must be one of sds, sjc, sjc_plain, hifa, csd, nfsd"),
        ({"objective": "csd", "use_sjc": True}, "use_sjc means objective sjc, and objective is csd: leave one out"),
        ({"objective": "nfsd", "use_img_loss": True}, "use_img_loss means objective hifa, and objective is nfsd"),
        ({"objective": "sjc", "weighting_strategy": "uniform"}, r"objective sjc has no w\(t\)"),
        ({"use_sjc": True, "use_img_loss": True}, "use_img_loss belongs to"),
        ({"var_red": 1}, "var_red is 1"),
    ],
)
def test_objectives_that_cannot_be_meant(values: dict[str, Any], said: str) -> None:
    with pytest.raises(CarvError, match=said):
        GuidanceOptions(**values)


def test_what_an_objective_lacks_is_named(sd_teacher: Any, batch: Any) -> None:
    rgb, cond = batch
    guidance = SDSGuidance(sd_teacher, GuidanceOptions(objective="nfsd"))
    with pytest.raises(CarvError, match="the objective nfsd needs prompts_negative"):
        guidance(rgb, cond.text, cond.uncond, 0)
    negatives = (cond.text[:, None], torch.zeros(2, 1))
    with pytest.raises(CarvError, match="the objective csd has no guidance"):
        SDSGuidance(sd_teacher, GuidanceOptions(objective="csd"))(rgb, cond.text, cond.uncond, 0, negatives=negatives)
    with pytest.raises(CarvError, match="the objective vsd needs a trained score"):
        SDSGuidance(sd_teacher, VSDOptions()).guide(rgb, cond, 0)


@pytest.mark.parametrize("objective", LINEAR)
def test_timesteps_follow_the_weight_of_the_objective(objective: str) -> None:
    estimator = SDSGuidance(TEACHER, GuidanceOptions(objective=objective, proposal="weight")).estimator
    table = TEACHER.schedule.weights("uniform" if objective.startswith("sjc") else "sds")
    assert torch.equal(estimator.proposal.weights, table.double())
