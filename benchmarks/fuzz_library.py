"""Every public function, class and method of the library, with one argument odd.

`CALLS` holds one good call of each; that nothing of `carv_3d.__all__` is missing in it is checked when it is read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fuzz_guard import Case
from fuzz_mutations import ODD, Raw
from hypothesis import strategies as st

import carv_3d as lib

Call = tuple[Callable[..., Any], dict[str, Any]]
SCHEDULE = lib.NoiseSchedule.scaled_linear
TYPES = ("CarvError", "Estimate", "GuidanceOutput", "Teacher", "__version__")  # no functions, or the library's to make


def latents(R: int = 2) -> torch.Tensor:
    """(R, 4, 8, 8) with gradient."""
    return torch.randn(R, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()


def eps_hat(z_t: torch.Tensor, t: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
    """A model that predicts a part of its input."""
    return 0.1 * z_t


@functools.cache
def gaussian() -> Any:
    return lib.GaussianTeacher(
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), names=("mug", "tree")
    )


def _sd(base: Path) -> Any:
    return lib.StableDiffusionTeacher.load(str(base / "m"), device="cpu")


def good(function: Callable[..., Any], **arguments: Any) -> Call:
    """A call that works."""
    return function, arguments


def _options(kind: Any) -> Call:
    return kind, {name: option.default for name, option in kind.declared().items()}


def _estimator() -> Any:
    return lib.CarvEstimator(SCHEDULE(), lib.EstimatorOptions(num_draws=2))


def _estimators() -> dict[str, Callable[[], Call]]:
    cond, shape = torch.ones(2, 3), (2, 2)
    draws = {
        "t": torch.ones(shape, dtype=torch.long), "eps": torch.randn(*shape, 4, 8, 8), "weights": torch.ones(shape),
        "group_size": 1,
    }  # fmt: skip
    return {
        "sds_loss": lambda: good(
            lib.sds_loss, latents=latents(), eps_hat=eps_hat, schedule=SCHEDULE(), cond=cond,
            generator=torch.Generator(), num_draws=2, grad_clip=1.0, min_step=1, max_step=900,
        ),
        "CarvEstimator": lambda: good(
            lib.CarvEstimator, schedule=SCHEDULE(), options=lib.EstimatorOptions(), meter=lib.CostMeter(),
            weights=torch.ones(1000),
        ),
        "CarvEstimator.estimate": lambda: good(
            _estimator().estimate, latents=latents(), eps_hat=eps_hat, cond=cond, generator=torch.Generator(),
            num_draws=2, grad_clip=1.0, draws=None,
        ),
        "CarvEstimator.estimate_residual": lambda: good(
            _estimator().estimate_residual, latents=latents(), residual=lambda z, t, e, *c: z - e, cond=None,
            generator=None, num_draws=2,
        ),
        "CarvEstimator.draw": lambda: good(_estimator().draw, latents=latents(), generator=None, num_draws=2),
        "CarvEstimator.set_range": lambda: good(_estimator().set_range, min_step=1, max_step=900),
        "CarvEstimator.load_state_dict": lambda: good(_estimator().load_state_dict, state=_estimator().state_dict()),
        "Draws": lambda: (lambda **d: _estimator().estimate(latents(), eps_hat, draws=lib.Draws(**d)), draws),
        "EstimatorOptions": lambda: _options(lib.EstimatorOptions),
        "CostMeter": lambda: good(lib.CostMeter, device="cpu", synchronize=True),
    }  # fmt: skip


def _schedules() -> dict[str, Callable[[], Call]]:
    made, t, z = lib.NoiseSchedule, torch.tensor([10, 500]), latents().detach()
    betas = {"num_train_timesteps": 10, "beta_start": 0.001, "beta_end": 0.01, "beta_schedule": "linear"}
    more = {"trained_betas": None, "rescale_betas_zero_snr": False, "prediction_type": "epsilon"}
    return {
        "NoiseSchedule": lambda: good(made, alphas_cumprod=torch.linspace(0.99, 0.01, 10)),
        "NoiseSchedule.scaled_linear": lambda: good(SCHEDULE, T=10, beta_start=0.001, beta_end=0.01),
        "NoiseSchedule.from_betas": lambda: good(made.from_betas, betas=torch.linspace(0.01, 0.02, 10)),
        "NoiseSchedule.from_config": lambda: (lambda **c: made.from_config(c), betas | more),
        "NoiseSchedule.from_diffusers": lambda: good(made.from_diffusers, scheduler=SimpleNamespace(config=betas)),
        "NoiseSchedule.add_noise": lambda: good(SCHEDULE().add_noise, z=z, eps=z, t=t),
        "NoiseSchedule.w": lambda: good(SCHEDULE().w, t=t, strategy="sds"),
        "ContinuousSchedule.from_schedule": lambda: good(lib.ContinuousSchedule.from_schedule, schedule=SCHEDULE()),
        "ContinuousSchedule.alpha": lambda: good(lib.ContinuousSchedule.flow().alpha, t=t + 0.5),
        "NoiseSchedule.weights": lambda: good(SCHEDULE().weights, strategy="sds"),
    }


def _guidances(base: Path) -> dict[str, Callable[[], Call]]:
    rgb = torch.rand(2, 8, 8, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    text, empty = gaussian().text_embeddings(["mug"]), gaussian().text_embeddings([""])
    step = {"rgb": rgb, "prompts_cond": text, "prompts_uncond": empty, "step": 1, "epoch": 0}

    def vsd() -> Call:
        teacher = _sd(base)
        emb = teacher.text_embeddings(["a mug"])
        guidance = lib.VSDGuidance(teacher, lib.LoraScore(teacher), lib.VSDOptions(num_draws=2))
        return good(
            guidance, rgb=torch.rand(2, 16, 16, 3, requires_grad=True), prompts_cond=emb, prompts_uncond=emb, step=1,
            prompts_lora=torch.randn(1, 20, 16), camera=torch.eye(4).expand(2, 4, 4),
        )  # fmt: skip

    return {
        "GuidanceOptions": lambda: _options(lib.GuidanceOptions),
        "VSDOptions": lambda: _options(lib.VSDOptions),
        "SDSGuidance": lambda: good(
            lib.SDSGuidance, teacher=gaussian(), options=lib.GuidanceOptions(), num_draws=2
        ),
        "SDSGuidance.call": lambda: (lib.SDSGuidance(gaussian(), num_draws=2), step),
        "SDSGuidance.join_ranks": lambda: good(
            lib.SDSGuidance(gaussian(), num_draws=2).join_ranks, rank=0, world_size=2
        ),
        "VSDGuidance": lambda: good(
            lib.VSDGuidance, teacher=(teacher := _sd(base)), lora_score=lib.LoraScore(teacher), options=None
        ),
        "VSDGuidance.call": vsd,
        "load_config": lambda: good(
            lib.load_config, path=None, overrides=("num_draws=2",), prompt="a mug", seed=1
        ),
    }  # fmt: skip


def _teachers(base: Path) -> dict[str, Callable[[], Call]]:
    sd, xl, z, name = lib.StableDiffusionTeacher, lib.StableDiffusionXLTeacher, latents().detach(), str(base / "m")
    return {
        "GaussianTeacher": lambda: good(
            lib.GaussianTeacher, means=z, std=0.5, schedule=None, names=("a", "b"), image_size=8
        ),
        "GaussianTeacher.text_embeddings": lambda: good(gaussian().text_embeddings, prompts=["a mug"]),
        "LoraScore": lambda: good(lib.LoraScore, denoiser=_sd(base), rank=2),
        "StableDiffusionTeacher.load": lambda: good(
            sd.load, name_or_path=name, device="cpu", half_precision=False, channels_last=False, with_text=True,
            cache_dir=None,
        ),
        "StableDiffusionTeacher.encode": lambda: good(
            _sd(base).encode, images=torch.rand(1, 3, 16, 16), generator=None, sample=True
        ),
        "StableDiffusionTeacher.decode": lambda: good(_sd(base).decode, latents=torch.rand(1, 4, 8, 8), clamp=True),
        "StableDiffusionTeacher.text_embeddings": lambda: good(_sd(base).text_embeddings, prompts=["a mug"]),
        "StableDiffusionXLTeacher.load": lambda: good(xl.load, name_or_path=name, device="cpu"),
    }  # fmt: skip


def calls(base: Path) -> dict[str, Callable[[], Call]]:
    """Name -> what makes a good call: the function and its arguments."""
    given = _estimators() | _schedules() | _guidances(base) | _teachers(base)
    missing = set(lib.__all__) - {name.partition(".")[0] for name in given} - set(TYPES)
    assert not missing, f"public, and no call of it is here: {sorted(missing)}"
    return given


def odd_values(good: Any) -> dict[str, Any]:
    """Values of other kinds, and where `good` is a tensor, tensors of other shapes and contents."""
    odd: dict[str, Any] = {k: v for k, v in ODD.items() if not isinstance(v, Raw) and v is not None}
    odd |= {
        "an object": object(),
        "bytes": b"x",
        "a class": int,
        "numpy": np.ones((2, 4, 8, 8)),
        "a path": Path("x"),
        "complex": 1j,
        "a tensor": torch.ones(3),
        "integers": torch.ones(2, 4, 8, 8, dtype=torch.long),
        "numpy int64": np.int64(2),
        "numpy NaN": np.float64("nan"),
        "a function": lambda *a: None,
        "gives a tuple": lambda z, *a: (z,),
        "gives text": lambda *a: "x",
        "gives NaN": lambda z, *a: z * math.nan,
        "gives another shape": lambda z, *a: z[:1, :1],
        "gives half": lambda z, *a: z.half(),
        "gives numpy": lambda z, *a: z.numpy(),
        "2^70": 2**70,
    }
    if isinstance(good, torch.Tensor):
        x = good.detach()
        odd |= {
            "empty": x[:0],
            "no axes": torch.tensor(1.0),
            "an axis more": x[None],
            "an axis less": x[0],
            "NaN": x * math.nan,
            "inf": x + math.inf,
            "half": x.half(),
            "double": x.double(),
            "bool": x > 0,
            "complex tensor": x.to(torch.complex64),
            "one fewer": x[:1],
            "repeated": x.repeat_interleave(3, -1),
            "sparse": x.to_sparse(),
            "meta": x.to("meta"),
            "1e30": x.float() * 1e30,
            "0..255": x.float().abs() * 255,
            "negative": -x,
            "bfloat": x.bfloat16(),
        }
    return odd


@st.composite
def cases(draw: Any, base: Path) -> Case:
    """A good call with one or two arguments replaced."""
    table = calls(base)
    name = draw(st.sampled_from(sorted(table)))
    function, arguments = table[name]()
    new, notes = dict(arguments), []
    for key in draw(st.lists(st.sampled_from(sorted(arguments)), min_size=1, max_size=2, unique=True)):
        odd = odd_values(arguments[key])
        note = draw(st.sampled_from(sorted(odd)))
        new[key] = odd[note]
        notes.append(f"{key} = {note}")

    def call() -> None:
        function(**new)

    return Case(f"{name}({', '.join(notes)})", (), call, ())


def areas() -> dict[str, tuple[Any, set[str]]]:
    """Name -> (strategy above a base, its parts)."""
    return {"library": (cases, {"m"})}
