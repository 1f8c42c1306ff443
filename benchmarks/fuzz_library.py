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
TYPES = (
    "CarvError",
    "Estimate",
    "GuidanceOutput",
    "Teacher",
    "__version__",
)  # made by the library alone, or no function


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


def calls(base: Path) -> dict[str, Callable[[], Call]]:
    """Name -> what makes a good call: the function and its arguments."""
    schedule = lib.NoiseSchedule.scaled_linear
    estimator = functools.partial(lambda: lib.CarvEstimator(schedule(), lib.EstimatorOptions(num_draws=2)))
    t = torch.tensor([10, 500])
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    rgb = torch.rand(2, 8, 8, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    cond = gaussian().text_embeddings(["mug"])
    step = {"rgb": rgb, "prompts_cond": cond, "prompts_uncond": gaussian().text_embeddings([""]), "step": 1, "epoch": 0}
    draws = {
        "t": torch.ones(2, 2, dtype=torch.long),
        "eps": torch.randn(2, 2, 4, 8, 8),
        "weights": torch.ones(2, 2),
        "group_size": 1,
    }
    text = {"prompts": ["a mug"]}
    lora = {"prompts_lora": torch.randn(1, 20, 16), "camera": torch.eye(4).expand(2, 4, 4)}

    def vsd() -> Call:
        teacher = _sd(base)
        emb = teacher.text_embeddings(["a mug"])
        guidance = lib.VSDGuidance(teacher, lib.LoraScore(teacher), lib.VSDOptions(num_draws=2))
        return guidance, {
            "rgb": torch.rand(2, 16, 16, 3, requires_grad=True),
            "prompts_cond": emb,
            "prompts_uncond": emb,
            "step": 1,
            **lora,
        }

    given: dict[str, Callable[[], Call]] = {
        "sds_loss": lambda: (
            lib.sds_loss,
            {
                "latents": latents(),
                "eps_hat": eps_hat,
                "schedule": schedule(),
                "cond": torch.ones(2, 3),
                "generator": torch.Generator(),
                "num_draws": 2,
                "grad_clip": 1.0,
                "min_step": 1,
                "max_step": 900,
            },
        ),
        "CarvEstimator": lambda: (
            lib.CarvEstimator,
            {
                "schedule": schedule(),
                "options": lib.EstimatorOptions(),
                "meter": lib.CostMeter(),
                "weights": torch.ones(1000),
            },
        ),
        "CarvEstimator.estimate": lambda: (
            estimator().estimate,
            {
                "latents": latents(),
                "eps_hat": eps_hat,
                "cond": torch.ones(2, 3),
                "generator": torch.Generator(),
                "num_draws": 2,
                "grad_clip": 1.0,
                "draws": None,
            },
        ),
        "CarvEstimator.estimate_residual": lambda: (
            estimator().estimate_residual,
            {
                "latents": latents(),
                "residual": lambda z, t, e, *c: z - e,
                "cond": None,
                "generator": None,
                "num_draws": 2,
            },
        ),
        "CarvEstimator.draw": lambda: (estimator().draw, {"latents": latents(), "generator": None, "num_draws": 2}),
        "CarvEstimator.set_range": lambda: (estimator().set_range, {"min_step": 1, "max_step": 900}),
        "CarvEstimator.load_state_dict": lambda: (estimator().load_state_dict, {"state": estimator().state_dict()}),
        "Draws": lambda: (lambda **d: estimator().estimate(latents(), eps_hat, draws=lib.Draws(**d)), draws),
        "EstimatorOptions": lambda: (
            lib.EstimatorOptions,
            {n: o.default for n, o in lib.EstimatorOptions.declared().items()},
        ),
        "GuidanceOptions": lambda: (
            lib.GuidanceOptions,
            {n: o.default for n, o in lib.GuidanceOptions.declared().items()},
        ),
        "VSDOptions": lambda: (lib.VSDOptions, {n: o.default for n, o in lib.VSDOptions.declared().items()}),
        "NoiseSchedule": lambda: (lib.NoiseSchedule, {"alphas_cumprod": torch.linspace(0.99, 0.01, 10)}),
        "NoiseSchedule.scaled_linear": lambda: (schedule, {"T": 10, "beta_start": 0.001, "beta_end": 0.01}),
        "NoiseSchedule.from_betas": lambda: (lib.NoiseSchedule.from_betas, {"betas": torch.linspace(0.01, 0.02, 10)}),
        "NoiseSchedule.from_config": lambda: (
            lambda **c: lib.NoiseSchedule.from_config(c),
            {
                "num_train_timesteps": 10,
                "beta_start": 0.001,
                "beta_end": 0.01,
                "beta_schedule": "linear",
                "trained_betas": None,
                "rescale_betas_zero_snr": False,
                "prediction_type": "epsilon",
            },
        ),
        "NoiseSchedule.from_diffusers": lambda: (
            lib.NoiseSchedule.from_diffusers,
            {
                "scheduler": SimpleNamespace(
                    config={"num_train_timesteps": 10, "beta_start": 0.001, "beta_end": 0.01, "beta_schedule": "linear"}
                )
            },
        ),
        "NoiseSchedule.add_noise": lambda: (schedule().add_noise, {"z": z, "eps": z, "t": t}),
        "NoiseSchedule.w": lambda: (schedule().w, {"t": t, "strategy": "sds"}),
        "NoiseSchedule.weights": lambda: (schedule().weights, {"strategy": "sds"}),
        "CostMeter": lambda: (lib.CostMeter, {"device": "cpu", "synchronize": True}),
        "GaussianTeacher": lambda: (
            lib.GaussianTeacher,
            {"means": z, "std": 0.5, "schedule": None, "names": ("a", "b"), "image_size": 8},
        ),
        "GaussianTeacher.text_embeddings": lambda: (gaussian().text_embeddings, text),
        "SDSGuidance": lambda: (
            lib.SDSGuidance,
            {"teacher": gaussian(), "options": lib.GuidanceOptions(), "num_draws": 2},
        ),
        "SDSGuidance.call": lambda: (lib.SDSGuidance(gaussian(), num_draws=2), step),
        "SDSGuidance.join_ranks": lambda: (
            lib.SDSGuidance(gaussian(), num_draws=2).join_ranks,
            {"rank": 0, "world_size": 2},
        ),
        "VSDGuidance": lambda: (
            lib.VSDGuidance,
            {"teacher": (teacher := _sd(base)), "lora_score": lib.LoraScore(teacher), "options": None},
        ),
        "VSDGuidance.call": vsd,
        "LoraScore": lambda: (lib.LoraScore, {"denoiser": _sd(base), "rank": 2}),
        "StableDiffusionTeacher.load": lambda: (
            lib.StableDiffusionTeacher.load,
            {
                "name_or_path": str(base / "m"),
                "device": "cpu",
                "half_precision": False,
                "channels_last": False,
                "with_text": True,
                "cache_dir": None,
            },
        ),
        "StableDiffusionTeacher.encode": lambda: (
            _sd(base).encode,
            {"images": torch.rand(1, 3, 16, 16), "generator": None, "sample": True},
        ),
        "StableDiffusionTeacher.decode": lambda: (_sd(base).decode, {"latents": torch.rand(1, 4, 8, 8), "clamp": True}),
        "StableDiffusionTeacher.text_embeddings": lambda: (_sd(base).text_embeddings, text),
        "StableDiffusionXLTeacher.load": lambda: (
            lib.StableDiffusionXLTeacher.load,
            {"name_or_path": str(base / "m"), "device": "cpu"},
        ),
        "load_config": lambda: (
            lib.load_config,
            {"path": None, "overrides": ("num_draws=2",), "prompt": "a mug", "seed": 1},
        ),
    }
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
