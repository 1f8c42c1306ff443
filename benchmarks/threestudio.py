"""threestudio's own guidance and the extension's, side by side in one process, on the same pipeline and scene.

    CARV_THREESTUDIO=PATH python benchmarks/threestudio.py [--model carv-tiny] [--steps 100] [--repeats 60]

Needs threestudio's packages (without CUDA: those that it imports, see tests/real_host/cpu_host.py). The scene is
threestudio's own NeRF of configs/carv-dreamfusion-tiny.yaml, trained for --steps steps and then frozen. In every
repeat each guidance gets the render of one fresh camera; its seconds are those of render, guidance and backward ("in
guidance" is all but the render and its backward), its gradient that of the distillation loss with respect to the scene.
ECM = (variance · seconds of threestudio's guidance) / (variance · seconds), with its 95 % bootstrap interval. A model
whose images are not 512² makes threestudio's guidance resize to that model's sizes, as ours does by itself, so that
both do the same work. threestudio's guidance takes what a UNet predicts for the noise, so for a model that predicts v,
as carv-tiny does, it is given that model's eps_hat: the objective is the same on both sides.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "real_host")]
import cpu_host  # noqa: E402
from bench import run_script, script_parser  # noqa: E402
from host_drivers import EpsUNet  # noqa: E402

from carv_3d.core.variance import total_variance  # noqa: E402
from carv_3d.errors import CarvError  # noqa: E402
from carv_3d.stats.bootstrap import ecm_interval  # noqa: E402
from carv_3d.teachers.availability import resolve_model  # noqa: E402
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher  # noqa: E402

STOCK, OURS = "stable-diffusion-guidance", "carv-stable-diffusion-guidance"
VARIANTS: dict[str, dict[str, Any]] = {
    "threestudio's own": {},
    "carv, K = 1, uniform": {"num_draws": 1, "proposal": "uniform", "stratify": "none"},
    "carv, K = 1": {"num_draws": 1},
    "carv, K = 4, uniform": {"num_draws": 4, "proposal": "uniform", "stratify": "none"},
    "carv, K = 4": {"num_draws": 4},
    "carv, K = 8": {"num_draws": 8},
    "carv, K = 8, antithetic": {"num_draws": 8, "antithetic": True},
}


def cameras(host: Any, cfg: Any) -> Iterator[dict[str, Any]]:
    data = host.find(cfg.data_type)(cfg.data)
    data.setup("fit")
    while True:
        yield from data.train_dataloader()


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = script_parser(__doc__)
    parser.add_argument("--model", default="carv-tiny", help="carv-tiny or a diffusers folder")
    parser.add_argument("--prompt", default="a red mug")
    parser.add_argument("--guidance-scale", type=float, default=2.5, help="threestudio's, which is s + 1 elsewhere")
    parser.add_argument("--steps", type=int, default=100, help="steps before the scene is frozen")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--width", type=int, default=64, help="of the renders")
    parser.add_argument("--samples", type=int, default=64, help="on a ray")
    return parser.parse_args()


@dataclass
class Bench:
    """threestudio's system and prompts, every guidance by its name, and the cameras."""

    system: Any
    prompts: Any
    guidances: dict[str, Any]
    batches: Iterator[dict[str, Any]]
    optimizer: torch.optim.Optimizer


def build(o: argparse.Namespace, checkout: str) -> Bench:
    """Everything that is measured, in a working directory of its own."""
    host = cpu_host.enter(checkout)
    cpu_host.load_extension()
    os.chdir(tempfile.mkdtemp())
    from threestudio.systems.utils import parse_optimizer
    from threestudio.utils.config import load_config

    config = cpu_host.EXTENSION / "configs" / "carv-dreamfusion-tiny.yaml"
    folder = str(resolve_model(o.model))
    sizes = [f"data.width={o.width}", f"data.height={o.width}", f"system.renderer.num_samples_per_ray={o.samples}"]
    given = [*cpu_host.settings(config, folder), *sizes, f"system.prompt_processor.prompt={o.prompt}"]
    cfg = load_config(str(config), cli_args=given)
    torch.manual_seed(cfg.seed)
    system = host.find(cfg.system_type)(cfg.system)
    system.log = lambda *_, **__: None
    prompts = system.prompt_processor = host.find(cfg.system.prompt_processor_type)(cfg.system.prompt_processor)
    shared = {
        "pretrained_model_name_or_path": folder, "half_precision_weights": False,
        "guidance_scale": o.guidance_scale, "max_step_percent": 0.6,
    }  # fmt: skip
    guidances = {
        name: host.find(OURS if options else STOCK)({**shared, **options}) for name, options in VARIANTS.items()
    }
    system.guidance = guidances["carv, K = 4"]
    teacher = StableDiffusionTeacher.load(folder, device="cpu", with_text=False)
    cpu_host.resize_like(teacher)
    if teacher.prediction_type != "epsilon":
        guidances["threestudio's own"].unet = EpsUNet(teacher)
    return Bench(system, prompts, guidances, cameras(host, cfg), parse_optimizer(cfg.system.optimizer, system))


def train(bench: Bench, steps: int) -> None:
    """Move the scene away from its first state."""
    for step in range(steps):
        bench.system.do_update_step(0, step)
        bench.optimizer.zero_grad()
        bench.system.training_step(next(bench.batches), 0)["loss"].backward()
        bench.optimizer.step()


@dataclass
class Measured:
    """Of one guidance, by repeat: seconds of a step, those in the guidance, and the flat gradient."""

    seconds: list[float] = field(default_factory=list)
    in_guidance: list[float] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)


def measure(bench: Bench, steps: int, repeats: int) -> dict[str, Measured]:
    """One gradient of each guidance in every repeat, interleaved; two repeats warm up."""
    parameters = [p for p in bench.system.geometry.parameters() if p.requires_grad]
    measured = {name: Measured() for name in bench.guidances}
    for repeat in range(-2, repeats):
        for name, guidance in bench.guidances.items():
            batch = next(bench.batches)
            guidance.update_step(0, steps)
            begin = time.process_time()
            rgb = bench.system(batch)["comp_rgb"]
            rendered = time.process_time()
            image = rgb.detach().requires_grad_()  # the same gradient in two parts, to time them apart
            loss = guidance(image, bench.prompts(), **batch, rgb_as_latents=False)["loss_sds"]
            (on_image,) = torch.autograd.grad(loss, image)
            guided = time.process_time()
            gradient = torch.autograd.grad(rgb, parameters, on_image)
            if repeat >= 0:
                measured[name].seconds.append(time.process_time() - begin)
                measured[name].in_guidance.append(guided - rendered)
                measured[name].gradients.append(torch.cat([g.flatten() for g in gradient]))
    return measured


def show(measured: dict[str, Measured]) -> None:
    """Print the table; the first guidance is the baseline."""
    print("| guidance | ms a step | of stock | ms in guidance | of stock | variance of stock | ECM [95 %] |")
    print("|---|---|---|---|---|---|---|")
    gradients = {name: torch.stack(m.gradients) for name, m in measured.items()}
    cost = {name: statistics.median(m.seconds) for name, m in measured.items()}
    inside = {name: statistics.median(m.in_guidance) for name, m in measured.items()}
    base = next(iter(measured))
    for name, g in gradients.items():
        print(f"| {name} | {cost[name] * 1e3:.0f} | {cost[name] / cost[base]:.2f} "
              f"| {inside[name] * 1e3:.0f} | {inside[name] / inside[base]:.2f} "
              f"| {total_variance(g) / total_variance(gradients[base]):.3f} "
              f"| {ecm_interval(gradients[base], cost[base], g, cost[name]).text()} |")  # fmt: skip


def main() -> None:
    """Build, train, measure and show."""
    o = arguments()
    checkout = os.environ.get("CARV_THREESTUDIO")
    if not checkout:
        raise CarvError("CARV_THREESTUDIO names no threestudio checkout; set it to the folder that holds launch.py.")
    bench = build(o, checkout)
    train(bench, o.steps)
    print(f"\n{o.model}, {o.prompt!r}, {o.width}² renders of {o.samples} samples a ray, frozen after {o.steps} steps, "
          f"{o.repeats} gradients each, {torch.get_num_threads()} threads, torch {torch.__version__}\n")  # fmt: skip
    show(measure(bench, o.steps, o.repeats))


if __name__ == "__main__":
    run_script(main)
