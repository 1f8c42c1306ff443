"""The cases of `regression` that call the library: estimators, guidances on known models, the threestudio extension."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from regression_cases import case, small_model, v_model, xl_model
from regression_version import (
    host_double,
    lora_score,
    module,
    renamed,
    sds_guidance,
    sds_loss,
    variance_rows,
    vsd_guidance,
)
from torch import Tensor

from carv_3d.core.estimator import CarvEstimator, EstimatorOptions
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.teachers.gaussian import GaussianTeacher

RANGE = {"min_step": 20, "max_step": 980}
STRATIFY, WEIGHTINGS = ("none", "render", "global"), ("sds", "uniform", "fantasia3d")


def gaussian(kind: type[GaussianTeacher] = GaussianTeacher, dtype: torch.dtype = torch.float32) -> GaussianTeacher:
    """A mixture of three, with images twice as large as its latents."""
    means = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return kind(means, 0.4, names=["red", "green", "blue"], image_size=8)


def layouts(draws: tuple[int, ...] = (1, 2, 4, 8)) -> Iterator[dict[str, Any]]:
    """Every design that can be laid out."""
    for stratify, antithetic, K in itertools.product(STRATIFY, (False, True), draws):
        if not (antithetic and K % 2):
            yield {"stratify": stratify, "antithetic": antithetic, "num_draws": K}


def renders(seed: int = 0, R: int = 2) -> Tensor:
    """(R, 8, 8, 3), with a gradient."""
    return torch.rand(R, 8, 8, 3, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def latents(dtype: torch.dtype = torch.float32) -> Tensor:
    """(3, 3, 4, 4), with a gradient."""
    g = torch.Generator().manual_seed(5)
    return torch.randn(3, 3, 4, 4, generator=g, dtype=dtype).requires_grad_()


@case("library: sds_loss, every design")
def every_design() -> dict[str, Any]:
    """Proposals, weightings and designs, with text and without."""
    schedule, out = NoiseSchedule.scaled_linear(), {}
    for proposal, weighting in itertools.product(("uniform", "weight"), WEIGHTINGS):
        results = []
        for i, design in enumerate(layouts()):
            z, g = latents(), torch.Generator().manual_seed(i)
            options = {**design, "proposal": proposal, "weighting": weighting}
            options |= {"min_step": 20 + i, "max_step": 980 - 7 * i}
            loss = sds_loss(z, gaussian_eps_hat, schedule, [text(3)], g, **options)
            loss.backward()
            results += [loss, z.grad]
        out[f"{proposal}, w {weighting}"] = results
    return out


TEACHERS = {torch.float32: gaussian(), torch.float64: gaussian(dtype=torch.float64)}


def text(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(n, 1, 3)."""
    return TEACHERS[dtype].text_embeddings(["red", "a blue", ""][:n])


def gaussian_eps_hat(z_t: Tensor, t: Tensor, emb: Tensor) -> Tensor:
    """The mixture's, in the latents' precision."""
    return TEACHERS[z_t.dtype].eps_hat(z_t, t, emb)


@case("library: CarvEstimator, steps")
def estimator_steps() -> dict[str, Any]:
    """Five steps of what learns, under a range that moves; every draw, and the state at the end."""
    out: dict[str, Any] = {}
    kinds = {
        "adaptive": {"proposal": "adaptive"},
        "few bins": {"proposal": "adaptive", "adaptive_bins": 10, "adaptive_floor": 0.3, "adaptive_decay": 0.9},
        "control": {"control_variate": True, "proposal": "uniform"},
        "control and adaptive": {"control_variate": True, "proposal": "adaptive", "weighting": "uniform"},
        "clip": {"grad_clip": 0.5, "max_batch": 5},
    }  # fmt: skip
    for (name, kind), design in itertools.product(kinds.items(), list(layouts((2, 4)))):
        if "control_variate" in kind and design["antithetic"]:
            continue
        options = EstimatorOptions(**kind, **design, **RANGE)
        estimator = CarvEstimator(TEACHERS[torch.float64].schedule, options)
        g, results = torch.Generator().manual_seed(2), []
        for step in range(5):
            estimator.set_range(20 + step, 980 - 100 * step)
            z = latents(torch.float64)
            e = estimator.estimate(z, gaussian_eps_hat, text(3, torch.float64), g)
            e.loss.backward()
            scalars = {renamed(key): value for key, value in e.scalars.items()}
            results += [e.loss, e.residual, e.weights, e.t, e.eps, e.grad, scalars, z.grad]
        out.setdefault(name, []).append([results, estimator.state_dict()])
    return out


@case("library: strata over ranks")
def ranks() -> dict[str, Any]:
    """The draws of three ranks, each with two renders."""
    out = {}
    for proposal, rank in itertools.product(("uniform", "weight"), range(3)):
        results = []
        for design in layouts():
            options = {**design, "proposal": proposal, "rank": rank, "world_size": 3, "shared_seed": 4, **RANGE}
            estimator = CarvEstimator(NoiseSchedule.scaled_linear(), EstimatorOptions(**options))
            drawn = [estimator.draw(latents()[:2], torch.Generator().manual_seed(rank)) for _ in range(2)]
            results += [[d.t, d.eps, d.weights] for d in drawn]
        out[f"{proposal}, rank {rank}"] = results
    return out


@case("library: a residual of one's own")
def own_residual() -> dict[str, Any]:
    """`estimate_residual` with a table of weights."""
    schedule, results = NoiseSchedule.scaled_linear(), []
    table = torch.linspace(0.1, 2, 1000)

    def residual(z_t: Tensor, t: Tensor, eps: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return table[t].view(-1, 1, 1, 1) * z_t * x, eps

    for design in layouts():
        options = EstimatorOptions(**design, **RANGE)
        estimator = CarvEstimator(schedule, options, weights=table)
        z = latents()
        e = estimator.estimate_residual(z, residual, torch.ones(3, 3, 4, 4), torch.Generator().manual_seed(1))
        e.loss.backward()
        results += [e.loss, e.residual, e.extra, z.grad]
    return {"estimates": results}


GUIDANCES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "threestudio": {"cfg_convention": "threestudio", "proposal": "uniform", "stratify": "none", "num_draws": 1},
    "adaptive": {"proposal": "adaptive", "stratify": "global", "antithetic": True},
    "control": {"control_variate": True, "weighting_strategy": "fantasia3d"},
    "sjc": {"use_sjc": True, "num_draws": 2},
    "plain sjc": {"use_sjc": True, "var_red": False, "num_draws": 2},
    "hifa": {"use_img_loss": True, "num_draws": 2, "grad_clip": 0.5},
    "hifa, uniform weight": {"use_img_loss": True, "weighting_strategy": "uniform"},
    "draw": {"vae_sample": "draw", "antithetic": True},
    "mode": {"vae_sample": "mode", "use_recon_loss": True},
    "sqrt_anneal": {"sqrt_anneal": True, "trainer_max_steps": 10, "max_step_percent": [0.98, 0.5, 10]},
    "annealed": {
        "guidance_scale": [0, 100, 7.5, 8], "grad_clip": [0, 2.0, 8.0, 8], "max_step_percent": [0.98, 0.5, 8],
        "min_step_percent": [0, 0.2, 0.02, 4], "max_batch": 3,
    },
}  # fmt: skip


@case("library: SDSGuidance")
def guidances() -> dict[str, Any]:
    """Four steps of every kind on the mixture, with Perp-Neg and without."""
    out = {}
    teacher = gaussian()
    cond, uncond = teacher.text_embeddings(["red", "green"]), teacher.text_embeddings(["", "blue"])
    negatives = teacher.text_embeddings(["green", "blue", "red", ""]).unflatten(0, (2, 2))
    for (name, options), perp in itertools.product(GUIDANCES.items(), (False, True)):
        guidance = sds_guidance(teacher, {"seed": 3, "guidance_scale": 7.5, **options})
        results = []
        for step in range(4):
            rgb = renders(step)
            given = (negatives, torch.tensor([[-0.5, -2.0], [0.0, -1.0]])) if perp else None
            step_out = guidance(rgb, cond, uncond, 2 * step, negatives=given)
            results.append(losses_and_gradients(step_out, rgb))
        out[f"{name}, Perp-Neg" if perp else name] = [results, guidance.state_dict()]
    return out


LOSSES = ("loss_sds", "loss_sds_img", "loss_recon", "loss_vsd", "loss_vsd_img", "loss_lora")


def losses_and_gradients(out: Any, rgb: Tensor) -> dict[str, Any]:
    """Of a guidance's output: losses, scalars without seconds, and the gradient of each loss on the renders."""
    given = out if isinstance(out, dict) else {**out.scalars, **{n: getattr(out, n, None) for n in LOSSES}}
    results: dict[str, Any] = {}
    for key, value in given.items():
        if isinstance(value, (int, float)) and "seconds" not in key:
            results[renamed(key)] = float(value)
        if key.startswith("loss_") and isinstance(value, Tensor):
            results[key] = value
            if key != "loss_lora":
                results[f"{key} gradient"] = torch.autograd.grad(value, rgb, retain_graph=True)[0]
    return results


class Clocked(GaussianTeacher):
    """A teacher whose calls take a millisecond a sample, of a clock that stands still otherwise."""

    time = 0.0

    def eps_hat(self, z_t: Tensor, t: Tensor, text_emb: Tensor) -> Tensor:
        Clocked.time += 1e-3 * len(z_t)
        return super().eps_hat(z_t, t, text_emb)


@case("library: num_draws=auto")
def auto_draws() -> dict[str, Any]:
    """K, and R in the second, over 70 steps of seconds that are made up."""
    costs, out = module("core.costs"), {}
    with mock.patch.object(costs, "time", types.SimpleNamespace(perf_counter=lambda: Clocked.time)):
        for name, step_seconds in (("K", None), ("K and R", 0.08)):
            Clocked.time = 0.0
            teacher = gaussian(Clocked)
            guidance = sds_guidance(teacher, {"seed": 3, "num_draws": "auto", "guidance_scale": 7.5})
            guidance.auto.step_seconds = step_seconds
            out[name] = [_auto_step(guidance, teacher, step) for step in range(70)]
    return out


def _auto_step(guidance: Any, teacher: GaussianTeacher, step: int) -> list[Any]:
    R = guidance.auto.renders or 2
    Clocked.time += 0.02 * R
    theta = renders(0, 1)
    views = 1 + 0.3 * torch.randn(R, 8, 8, 3, generator=torch.Generator().manual_seed(step))
    rgb = theta * views
    cond, uncond = teacher.text_embeddings(["red"] * R), teacher.text_embeddings([""] * R)
    out = guidance(rgb, cond, uncond, step)
    out.loss_sds.backward()
    return [float(R), {renamed(k): v for k, v in out.scalars.items() if "seconds" not in k}, theta.grad]


@case("library: rows of carv variance")
def rows() -> dict[str, Any]:
    """Figures with their intervals, of ten made-up batches."""
    sizes = [(2, 1, "uniform"), (1, 4, "uniform"), (1, 4, "is+strat"), (2, 4, "cameras")]
    g, batches = torch.Generator().manual_seed(1), []
    for _ in range(10):
        x = torch.rand(6, len(sizes), generator=g, dtype=torch.float64).tolist()
        keys = [f"{R},{K},{name}" for R, K, name in sizes]
        seconds = {k: {"step": 1 + a, "denoise": 0.5 * b, "other": 0.5} for k, a, b in zip(keys, x[2], x[3])}
        outside = dict(zip(("2,0,0", "1,0,0", "2,1,0"), x[1]))
        batches.append({"v_in": dict(zip(keys, x[0])), "s_out2": outside, "seconds": seconds, "norms": []})
    table = variance_rows(sizes, batches)
    numbers = ("s_out2", "v_in", "seconds", "bound", "phases")
    out: dict[str, Any] = {name: [getattr(row, name) for row in table] for name in numbers}
    for name in ("variance", "ecm", "re"):
        kept = [i for i in (getattr(row, name) for row in table) if i is not None]
        out |= {name: [i.value for i in kept], f"{name}, interval": [[i.low, i.high] for i in kept]}
    return out


@case("library: VSDGuidance", slow=True)
def vsd() -> dict[str, Any]:
    """Three steps, after each of which the LoRA is trained."""
    teacher, camera = sd_teacher(small_model()), torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1))
    kinds = {
        "defaults": {},
        "two draws": {"lora_n_timestamp_samples": 4, "antithetic": True, "guidance_scale_lora": 2.0, "lora_rank": 2},
        "without a camera": {"lora_cfg_training": False, "stratify": "none", "lora_max_batch": 1, "use_img_loss": True},
    }
    out = {}
    for name, options in kinds.items():
        torch.manual_seed(0)
        score = lora_score(sd_teacher(v_model()), options.get("lora_rank", 4))
        guidance = vsd_guidance(teacher, score, {"seed": 3, **options})
        cond, uncond = teacher.text_embeddings(["a mug", "a cup"]), teacher.text_embeddings(["", ""])
        optimizer, results = torch.optim.Adam(score.parameters(), lr=1e-2), []
        for step in range(3):
            rgb = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(step)).requires_grad_()
            step_out = guidance(rgb, cond, uncond, cond[:1], camera, step)
            results.append(losses_and_gradients(step_out, rgb))
            optimizer.zero_grad()
            step_out.loss_lora.backward()
            optimizer.step()
        out[name], out[f"{name}, LoRA"] = results, score.lora.state_dict()
    return out


def sd_teacher(folder: str) -> Any:
    """Stable Diffusion on the CPU."""
    return module("teachers.stable_diffusion").StableDiffusionTeacher.load(folder, device="cpu")


def xl_teacher(folder: str) -> Any:
    """Stable Diffusion XL on the CPU."""
    return module("teachers.stable_diffusion_xl").StableDiffusionXLTeacher.load(folder, device="cpu")


# the threestudio extension

HOSTED: dict[str, dict[str, Any]] = {
    "defaults": {"vae_sample": True},
    "one uniform draw": {"num_draws": 1, "proposal": "uniform", "stratify": "none"},
    "adaptive pairs": {"proposal": "adaptive", "antithetic": True, "guidance_scale": 7.5},
    "sjc": {"use_sjc": True},
    "hifa and reconstruction": {"use_img_loss": True, "use_recon_loss": True, "num_draws": 2},
    "annealed": {"max_step_percent": [0, 0.98, 0.5, 4], "grad_clip": [0, 2.0, 8.0, 4], "weighting_strategy": "uniform"},
}
HOSTED_VSD: dict[str, dict[str, Any]] = {
    "defaults": {},
    "mvp": {"camera_condition_type": "mvp", "lora_n_timestamp_samples": 2, "num_draws": 2},
}


def hosted(kind: str, options: dict[str, Any], perp_neg: bool, **names: str) -> list[Any]:
    """Three steps of the extension in the host double; of VSD with a step of the LoRA after each."""
    double, results = host_double(), []
    views = {
        "elevation": torch.tensor([15.0, 20.0]), "azimuth": torch.tensor([0.0, 90.0]),
        "camera_distances": torch.tensor([1.5, 2.0]), "rays_o": None, "height": 64,
        "c2w": torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1)),
        "mvp_mtx": torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(2)),
    }  # fmt: skip
    model = xl_model() if "xl" in kind else small_model()
    teacher = xl_teacher(model) if "xl" in kind else sd_teacher(model)
    text_, uncond, around = (teacher.text_embeddings(t) for t in (["a mug", "a cup"], ["", "bad"], ["all", "round"]))
    utils = double.PromptUtils(text_, uncond, from_all_sides=around)
    if perp_neg:
        utils.negatives = teacher.text_embeddings(["front", "side", "back", "top"]).unflatten(0, (2, 2))
        utils.weights = torch.tensor([[-0.5, -2.0], [0.0, -1.0]])
    with pytest.MonkeyPatch.context() as patch:
        host = double.install(patch)
        torch.manual_seed(0)
        guidance = host.modules[f"carv-{kind}-guidance"](
            {"pretrained_model_name_or_path": model, "seed": 0, "vae_sample": False, **names, **options}
        )
        parameters = list(guidance.parameters()) if hasattr(guidance, "parameters") else []
        optimizer = torch.optim.Adam(parameters, lr=1e-2) if parameters else None
        for step in range(3):
            rgb = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(step)).requires_grad_()
            if hasattr(guidance, "update_step"):
                guidance.update_step(0, step)
            out = guidance(rgb, utils, **views)
            results.append(losses_and_gradients(out, rgb))
            if optimizer is not None:
                optimizer.zero_grad()
                out["loss_lora"].backward()
                optimizer.step()
        results.append([p.detach().clone() for p in parameters])
    return results


def _hosted(
    kind: str, options: dict[str, dict[str, Any]], perp_neg: bool = False, v: bool = False
) -> Callable[[], Any]:
    def run() -> dict[str, Any]:
        names = {"pretrained_model_name_or_path_lora": v_model()} if v else {}
        return {name: hosted(kind, chosen, perp_neg, **names) for name, chosen in options.items()}

    return run


case("extension: score distillation", slow=True)(_hosted("stable-diffusion", HOSTED))
case("extension: score distillation, Perp-Neg", slow=True)(_hosted("stable-diffusion", HOSTED, perp_neg=True))
case("extension: Stable Diffusion XL", slow=True)(
    _hosted("stable-diffusion-xl", {"defaults": {}, "sjc": HOSTED["sjc"]})
)
case("extension: variational", slow=True)(_hosted("vsd", HOSTED_VSD, v=True))
