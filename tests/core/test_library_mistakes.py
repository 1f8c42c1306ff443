"""What callers of the library give by mistake: one sentence each, which names the argument and what is due."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from estimators import SCHEDULE, make, model, seeded, some_latents
from torch import Tensor

from carv_3d.core.designs import Design
from carv_3d.core.estimator import CarvEstimator, Draws, EstimatorOptions
from carv_3d.core.proposals import make_proposal
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.core.sds import sds_loss
from carv_3d.errors import MOST_CHARACTERS, CarvError
from carv_3d.guidance.options import GuidanceOptions

Z = some_latents()


class UNet2DConditionOutput(OrderedDict[str, Tensor]):
    """As diffusers': a mapping with attributes."""

    @property
    def sample(self) -> Tensor:
        return self["sample"]


def loss(latents: Any = Z, eps_hat: Any = model, schedule: Any = SCHEDULE, **more: Any) -> Tensor:
    return sds_loss(latents, eps_hat, schedule, **more)


def returned(value: Callable[[Tensor], Any]) -> Tensor:
    return loss(eps_hat=lambda z_t, t: value(z_t))


def with_draws(**changed: Any) -> object:
    given: dict[str, Any] = {"t": torch.ones(3, 2, dtype=torch.int64), "eps": torch.ones(3, 2, 4, 3, 3)}
    return make().estimate(Z, model, draws=Draws(**{**given, **changed}))


EIGHT_BITS = Z.detach().to(torch.float8_e4m3fn)
IMAGES = 255 * torch.rand(2, 3, 8, 8, generator=seeded())
MISTAKES: list[tuple[Callable[[], object], str]] = [
    (lambda: make().estimate(EIGHT_BITS, model), "of type torch.float8_e4m3fn; they must have 16 bits or more"),
    (lambda: returned(lambda z: UNet2DConditionOutput(sample=z)), "a UNet2DConditionOutput, .* return its .sample"),
    (lambda: returned(lambda z: (z,)), "eps_hat returned a tuple, not a tensor: return one of its items"),
    (lambda: returned(lambda z: {"sample": z}), r"returned a dict, .* one of its values \(sample\)"),
    (lambda: returned(lambda z: [z]), "returned a list, not a tensor: return one of its items"),
    (lambda: returned(lambda z: z.numpy()), "returned a ndarray, not a tensor"),
    (lambda: returned(lambda z: z > 0), "eps_hat returned numbers of type torch.bool; they must be floating-point"),
    (lambda: returned(lambda z: z.long()), "numbers of type torch.int64"),
    (lambda: returned(lambda z: z.to(torch.complex64)), "numbers of type torch.complex64"),
    (lambda: returned(lambda z: z.to(torch.float8_e5m2)), "torch.float8_e5m2; they must be .* of 16 bits or more"),
    (lambda: returned(lambda z: z.to_sparse()), "returned a torch.sparse_coo tensor; .* return its .to_dense()"),
    (lambda: loss(eps_hat=torch.nn.Identity()), "called with z_t and t, which it does not take: .* 2 positional"),
    (lambda: make().set_range(5), "missing 1 .* 'max_step'; the call is CarvEstimator.set_range"),  # type: ignore
    (lambda: returned(lambda z: z.to("meta")), "eps_hat returned a tensor on meta for z_t on cpu; move the model"),
    (lambda: loss(eps_hat=lambda z_t: z_t), "called with z_t and t, which it does not take: .* 1 positional"),
    (lambda: loss(eps_hat=lambda z_t, t: z_t, cond=torch.ones(3)), "z_t, t and 1 tensors of cond, which it does not"),
    (lambda: returned(lambda z: None), "returned a NoneType, not a tensor: return the noise prediction"),
    (lambda: returned(lambda z: z.repeat(1, 2, 1, 1)), r"returned \(12, 8, 3, 3\) for z_t of \(12, 4, 3, 3\)"),
    (lambda: returned(lambda z: z.sum()), r"returned \(\) for z_t"),
    (lambda: loss(num_drawz=3), "no option 'num_drawz'; did you mean num_draws"),
    (lambda: loss(num_draws=0), "num_draws is 0; it must be a whole number from 1 to"),
    (lambda: loss(num_draws=-1), "num_draws is -1; it must be a whole number from 1 to"),
    (lambda: loss(num_draws=1.5), "num_draws is 1.5; it must be a whole number from 1 to"),
    (lambda: loss(num_draws=float("nan")), "num_draws is nan; it must be a whole number from 1 to"),
    (lambda: loss(num_draws=10**5000), "num_draws is a int that cannot be shown .*; it must be a whole number from 1"),
    (lambda: loss(num_draws="many"), "num_draws is 'many'"),
    (lambda: loss(num_draws=2**40), r"num_draws is 1099511627776.*442,368.0 GiB \(474,989,023,199,232 bytes\)"),
    (lambda: loss(num_draws=2**70), r"must be a whole number from 1 to 2\^40"),
    (lambda: loss(grad_clip="a"), "grad_clip is 'a'; it must be"),
    (lambda: loss(grad_clip=1e308), "grad_clip is 1e.308; it must be a number above 0 and of at most 1e.30, or null"),
    (lambda: loss(grad_clip=10**400), "grad_clip is 10* ...; it must be"),
    (lambda: loss(min_step=900, max_step=100), "min_step is 900, above max_step, which is 100; change one"),
    (lambda: make().set_range(900, 100), "min_step is 900 and max_step 100"),
    (lambda: make().set_range("a" * 10_000, 3), "min_step is 'a{70,90} [.]{3} and max_step 3"),  # type: ignore[arg-type]
    (lambda: GuidanceOptions(guidance_scale=list(range(100_001))), r"guidance_scale is \[0, 1, .* [.]{3}, which is no"),
    (lambda: GuidanceOptions(guidance_scale=itertools.count()), r"guidance_scale is count\(0\), not a finite number"),  # type: ignore[arg-type]
    (lambda: loss(proposal="wieght"), "proposal is 'wieght'.*did you mean weight"),
    (lambda: loss(min_step="a" * 10_000), "min_step is 'a{70,90} [.]{3}; it must be"),
    (lambda: loss(cond="a mug"), "cond is 'a mug'; it must be a tensor"),
    (lambda: loss(cond=("a mug", "", "")), "cond is a tuple; it must be a tensor, or a tuple of tensors"),
    (lambda: loss(cond=torch.ones(2, 5)), r"cond has shapes \[\(2, 5\)\]; each must begin with 3"),
    (lambda: loss(generator=0), r"generator is 0; .* torch.Generator\(\).manual_seed\(0\)"),
    (lambda: loss(schedule=None), "schedule is None; it must be a NoiseSchedule"),
    (lambda: loss(schedule=SCHEDULE.alphas_cumprod), r"schedule is a Tensor; .*NoiseSchedule\(...\)"),
    (lambda: loss(schedule=SimpleNamespace(config={})), "from_diffusers"),
    (lambda: loss(eps_hat=None), "eps_hat is None; it must be a function"),
    (lambda: sds_loss(Z, SCHEDULE, model), "schedule is a function; it must be a NoiseSchedule"),  # type: ignore
    (lambda: loss(Z.detach().numpy()), "latents are a ndarray; they must be a torch tensor"),
    (lambda: loss([[0.5]]), "latents are a list"),
    (lambda: loss(torch.ones(2, 4, 3, 3, dtype=torch.uint8)), "latents are of type torch.uint8"),
    (lambda: loss(torch.ones(0, 4, 3, 3, requires_grad=True)), r"latents have shape \(0, 4, 3, 3\)"),
    (lambda: loss(torch.ones(2, 0, requires_grad=True)), r"latents have shape \(2, 0\)"),
    (lambda: loss(torch.ones(7, requires_grad=True)), r"latents have shape \(7,\); they must be \(R, ...\)"),
    (lambda: loss(torch.eye(4).to_sparse().requires_grad_()), "latents are torch.sparse_coo; they must be a dense"),
    (lambda: loss(torch.ones(2, 4, device="meta", requires_grad=True)), "latents are without data"),
    (lambda: loss(Z.detach()), "latents need no gradient"),
    (lambda: torch.vmap(loss, randomness="different")(Z.detach()[None]), "gradient of their own within vmap or jvp"),
    (lambda: make_proposal("adaptive", SCHEDULE).update(torch.ones(2).long(), torch.ones(1)), "t has shape"),
    (lambda: make().draw("a"), "latents are 'a'"),  # type: ignore[arg-type]
    (lambda: make().draw(Z, 3), "generator is 3"),  # type: ignore[arg-type]
    (lambda: sds_loss(Z, model, SCHEDULE, 8), r"takes 3 positional .*sds_loss\(.*, schedule, \*, cond=None"),  # type: ignore
    (lambda: CarvEstimator(SCHEDULE, None, 8), r"positional arguments .* CarvEstimator\(schedule, options=None, \*"),  # type: ignore
    (lambda: CarvEstimator(SCHEDULE, num_draws=8), r"keyword argument 'num_draws'; the call is CarvEstimator\("),  # type: ignore
    (lambda: make().estimate(Z, model, num_drawz=8), "argument 'num_drawz'.*; the call is CarvEstimator.estimate"),  # type: ignore
    (lambda: CarvEstimator(SCHEDULE, meter=3), "meter is 3; it must be a CostMeter, or None"),  # type: ignore[arg-type]
    (lambda: CarvEstimator(SCHEDULE, weights=[1.0]), r"the weighting is \[1.0\]; it must be"),  # type: ignore[arg-type]
    (lambda: make().load_state_dict({}), "no state of a CarvEstimator .it has no 'proposal'"),
    (lambda: make().load_state_dict(None), "no state of a CarvEstimator .'NoneType'"),  # type: ignore[arg-type]
    (lambda: make(shared_seed=2**70), "shared_seed is 1180591620717411303424; it must be a whole number of at least 0"),
    (lambda: make(world_size=10**12), "world_size is 1000000000000; it must be a whole number from 1 to 1,048,576"),
    (lambda: loss(IMAGES.requires_grad_(), schedule=NoiseSchedule.scaled_linear()), r"images in 0\.\.255"),
    (lambda: CarvEstimator(SCHEDULE, 8), r"options is 8; .*EstimatorOptions\(num_draws=8\)"),  # type: ignore
    (lambda: CarvEstimator(SCHEDULE, {"num_draws": 8}), r"options is a dict; .*\(\*\*your_dict\)"),  # type: ignore
    (lambda: CarvEstimator(None), "schedule is None"),  # type: ignore[arg-type]
    (lambda: EstimatorOptions(8), "EstimatorOptions got 8 without a name; write it as NAME=VALUE"),  # type: ignore
    (lambda: EstimatorOptions("none", True), "EstimatorOptions got True without a name"),  # type: ignore[misc]
    (lambda: Design("render"), "Design got 'render' without a name"),  # type: ignore[misc]
    (lambda: EstimatorOptions(rank=1), "rank is 1; with world_size 1"),
    (lambda: make().estimate(Z, model, draws=4), "draws are 4; they must be Draws"),  # type: ignore[arg-type]
    (lambda: with_draws(t=torch.ones(3, 2)), r"the draws' t has type torch.float32 and shape \(3, 2\)"),
    (lambda: with_draws(t=[[1, 2]] * 3), "the draws' t is a list; it must be a torch tensor"),
    (lambda: with_draws(t=torch.tensor(1)), r"the draws' t has type torch.int64 and shape \(\); it must be \(R, K\)"),
    (lambda: with_draws(t=torch.full((3, 2), 1000)), "the teacher's timesteps end at 999"),
    (lambda: with_draws(weights="a"), "the draws' weights is 'a'"),
    (lambda: with_draws(group_size=0), "the draws' group_size is 0"),
    (lambda: make().estimate(Z, model, num_draws=2.5), "num_draws is 2.5"),  # type: ignore[arg-type]
    (lambda: make().estimate(Z, model, grad_clip=-1.0), "grad_clip is -1.0; it must be"),
    (lambda: make(antithetic=True).estimate(Z, model, num_draws=3), "set num_draws to 4"),
    (lambda: make().estimate_residual(Z, lambda *_: (1, 2, 3)), "the residual returned a tuple"),
    (lambda: make().estimate_residual(Z, lambda z, *_: (z, "a")), "the residual's extra is 'a'; it must be a tensor"),  # type: ignore
    (lambda: make().estimate_residual(Z, lambda z, *_: (z, z[:1])), r"extra is \(1, 4, 3, 3\); .* begins with 12"),
    (lambda: make_proposal("x" * 10_000, SCHEDULE), "proposal is 'x{70,90} [.]{3}; it must be one of"),
    (lambda: make_proposal("weight", None), "schedule is a NoneType; it must be a NoiseSchedule"),  # type: ignore[arg-type]
    (lambda: make_proposal("weight", SCHEDULE, bins=3), "got 'bins'; the adaptive proposal takes bins, floor"),
    (lambda: make_proposal("adaptive", SCHEDULE, bins="a"), "got bins 'a', floor 0.1"),
    (lambda: NoiseSchedule.scaled_linear(-1), "num_train_timesteps is -1; it must be .* to 1,000,000"),
    (lambda: NoiseSchedule.scaled_linear(10**13), "num_train_timesteps is 10000000000000; it must be"),
    (lambda: NoiseSchedule.from_config({"num_train_timesteps": [1]}), r"num_train_timesteps is \[1\]; it must be"),
    (lambda: NoiseSchedule.from_config({"beta_start": float("nan")}), "beta_start is nan; it must be .* and below 1"),
    (lambda: NoiseSchedule.from_config({"trained_betas": "abc"}), "trained_betas is 'abc'; it must be a list"),
    (lambda: NoiseSchedule.from_config({"beta_schedule": "x" * 10_000}), "beta_schedule is 'x{70,90} [.]{3}; it"),
    (lambda: make(max_step=1000), "the teacher's timesteps end at 999"),
]  # fmt: skip


@pytest.mark.parametrize(("make_it", "said"), MISTAKES)
def test_a_mistake_is_one_sentence(make_it: Callable[[], object], said: str) -> None:
    with pytest.raises(CarvError, match=said) as caught:
        make_it()
    message = str(caught.value)
    assert len(message) < 400
    assert "\n" not in message


def test_order_cannot_be_confused() -> None:
    with pytest.raises(TypeError, match="3 positional"):
        sds_loss(Z, model, SCHEDULE, 8)  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        make().estimate(Z, model, None, None, None, 8)  # type: ignore[misc]


def test_a_mistake_inside_of_the_model_stays_its_own() -> None:
    def broken(z_t: Tensor, t: Tensor) -> Tensor:
        return z_t + len(t, 1)  # type: ignore[call-arg]

    class Module(torch.nn.Module):
        def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
            return broken(z_t, t)

    for eps_hat in (broken, Module()):
        with pytest.raises(TypeError, match="len") as caught:
            loss(eps_hat=eps_hat)
        assert not isinstance(caught.value, CarvError)


def test_a_message_that_quotes_something_long_keeps_both_ends() -> None:
    message = str(CarvError(f"name is {'a' * 100_000}; lower it."))
    assert len(message) < MOST_CHARACTERS + 10
    assert message.startswith("name is aaa")
    assert message.endswith("aaa; lower it.")


def test_half_precision_and_a_prediction_with_gradient_are_taken() -> None:
    scale = torch.ones((), requires_grad=True)

    def with_gradient(z_t: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            return scale * model(z_t, t)

    plain = loss(generator=seeded(1))
    assert torch.equal(loss(eps_hat=with_gradient, generator=seeded(1)), plain)
    assert scale.grad is None
    half = loss(eps_hat=lambda z_t, t: model(z_t, t).half(), generator=seeded(1))
    torch.testing.assert_close(half, plain, rtol=0.01, atol=0)


def test_numbers_of_numpy_are_taken() -> None:
    a = loss(
        generator=seeded(1),
        num_draws=np.int64(8),
        min_step=np.int32(20),
        max_step=np.int16(980),
        grad_clip=np.float32(2),
    )
    b = loss(generator=seeded(1), num_draws=8, grad_clip=2.0)
    assert torch.equal(a, b)
    estimate = make().estimate(Z, model, generator=seeded(1), num_draws=np.int64(3))  # type: ignore[arg-type]
    assert estimate.residual.shape[1] == 3
    ranged = make()
    ranged.set_range(np.int64(5), np.int64(50))  # type: ignore[arg-type]
    assert (ranged.proposal.min_step, ranged.proposal.max_step) == (5, 50)
    with pytest.raises(CarvError, match="whole numbers"):
        ranged.set_range(np.float64(5), np.float64(60))  # type: ignore[arg-type]


def test_images_are_refused_at_any_call() -> None:
    schedule, images = NoiseSchedule.scaled_linear(), IMAGES.detach().requires_grad_()
    loss(IMAGES.detach().div(127.5).sub(1).requires_grad_(), schedule=schedule)
    with pytest.raises(CarvError, match=r"latents go from 0.* to 25.*images in 0\.\.255"):
        loss(images, schedule=schedule)


def test_latents_without_gradient_have_an_estimate() -> None:
    for latents in (Z, Z.detach()):
        out = make().estimate(latents, model, generator=seeded(1))
        assert out.loss.requires_grad is latents.requires_grad
        assert torch.equal(out.grad, make().estimate(Z, model, generator=seeded(1)).grad)


@pytest.mark.parametrize(("T", "expected"), [(1000, (20, 980)), (100, (2, 98)), (4, (0, 3)), (1, (0, 0))])
def test_the_range_is_a_share_of_any_schedule(T: int, expected: tuple[int, int]) -> None:
    schedule = NoiseSchedule(torch.linspace(0.9, 0.1, T))
    proposal = CarvEstimator(schedule).proposal
    assert (proposal.min_step, proposal.max_step) == expected
    sds_loss(Z, lambda z_t, t: z_t * 0, schedule).backward()
    assert EstimatorOptions(max_step=T - 1).timestep_range(T) == (expected[0], T - 1)


def test_what_a_session_shows_is_short() -> None:
    estimator = make(num_draws=4, antithetic=True, proposal="adaptive")
    out = estimator.estimate(Z, model, generator=seeded(1))
    draws = Draws(out.t, out.eps, out.weights, 2)
    assert repr(estimator).startswith(
        "CarvEstimator(K=4, adaptive proposal on 20 .. 980, stratify render, antithetic, Noise"
    )
    assert repr(out).startswith("Estimate(R=3, K=4, latents (4, 3, 3), loss=")
    assert "snr=" in repr(out)
    assert repr(NoiseSchedule.scaled_linear().to("meta")) == "NoiseSchedule(1000 timesteps, without data, meta)"
    assert repr(draws) == f"Draws(R=3, K=4, latents (4, 3, 3), t from {out.t.min()} to {out.t.max()}, in pairs)"
    assert max(map(len, map(repr, (estimator, out, draws)))) < 200


def test_memory_that_runs_out_while_drawing_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr(torch, "randn", full)
    with pytest.raises(CarvError, match=r"num_draws is 4, whose noise for 3 renders takes 0.0 MiB \(1,728 bytes\)"):
        make().estimate(Z, model)


def test_large_latents_of_both_signs_are_no_images() -> None:
    latents = 50 * some_latents().detach()
    assert float(latents.min()) < 0
    assert float(latents.max()) > 64
    assert bool(make().estimate(latents, model, generator=seeded()).grad.isfinite().all())
