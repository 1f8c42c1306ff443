"""threestudio's own guidance and the extension's, side by side in one process, on the same pipeline and scene.

    CARV_THREESTUDIO=PATH python benchmarks/threestudio.py [--model carv-tiny] [--steps 100] [--repeats 60]

Needs threestudio's packages (without CUDA: those that it imports, see tests/extension/real_host.py). The scene is
threestudio's own NeRF of configs/carv-dreamfusion-tiny.yaml, trained for --steps steps and then frozen. In every
repeat each guidance gets the render of one fresh camera; its seconds are those of render, guidance and backward ("in
guidance" is all but the render and its backward), its gradient that of the distillation loss with respect to the scene.
ECM = (variance · seconds of threestudio's guidance) / (variance · seconds), with its 95 % bootstrap interval. A model
whose images are not 512² makes threestudio's guidance resize to that model's sizes, as ours does by itself, so that
both do the same work.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "extension")]
import real_host  # noqa: E402

from carv_3d.core.accounting import ecm_interval, total_variance  # noqa: E402
from carv_3d.errors import CarvError, run_script  # noqa: E402
from carv_3d.teachers.availability import resolve_model  # noqa: E402

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


def fit_stock_to(model: Any) -> None:
    """threestudio writes 512 and 64 out; exchange them for this model's sizes where its guidance calls interpolate."""
    from threestudio.models.guidance import stable_diffusion_guidance as module

    sizes = {(512, 512): (model.image_size,) * 2, (64, 64): (model.latent_size,) * 2}
    proxy = types.ModuleType("functional")
    vars(proxy).update(vars(torch.nn.functional))

    def interpolate(x: Tensor, size: tuple[int, int], **more: Any) -> Tensor:
        return torch.nn.functional.interpolate(x, sizes.get(tuple(size), size), **more)

    proxy.interpolate = interpolate  # type: ignore[attr-defined]
    module.F = proxy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="carv-tiny", help="carv-tiny or a diffusers folder")
    parser.add_argument("--prompt", default="a red mug")
    parser.add_argument("--guidance-scale", type=float, default=2.5, help="threestudio's, which is s + 1 elsewhere")
    parser.add_argument("--steps", type=int, default=100, help="steps before the scene is frozen")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--width", type=int, default=64, help="of the renders")
    parser.add_argument("--samples", type=int, default=64, help="on a ray")
    o = parser.parse_args()
    checkout = os.environ.get("CARV_THREESTUDIO")
    if not checkout:
        raise CarvError("CARV_THREESTUDIO names no threestudio checkout; set it to the folder that holds launch.py.")
    host = real_host.enter(checkout)
    real_host.load_extension()
    os.chdir(tempfile.mkdtemp())
    from threestudio.systems.utils import parse_optimizer
    from threestudio.utils.config import load_config

    config = real_host.EXTENSION / "configs" / "carv-dreamfusion-tiny.yaml"
    folder = str(resolve_model(o.model))
    sizes = [f"data.width={o.width}", f"data.height={o.width}", f"system.renderer.num_samples_per_ray={o.samples}"]
    given = [*real_host.settings(config, folder), *sizes, f"system.prompt_processor.prompt={o.prompt}"]
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
    fit_stock_to(guidances["carv, K = 4"]._carv.teacher)
    batches = cameras(host, cfg)

    system.guidance = guidances["carv, K = 4"]
    optimizer = parse_optimizer(cfg.system.optimizer, system)
    for step in range(o.steps):
        system.do_update_step(0, step)
        optimizer.zero_grad()
        system.training_step(next(batches), 0)["loss"].backward()
        optimizer.step()

    parameters = [p for p in system.geometry.parameters() if p.requires_grad]
    drawn: dict[str, list[Tensor]] = {name: [] for name in VARIANTS}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    in_guidance: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for repeat in range(-2, o.repeats):  # two rounds warm up
        for name, guidance in guidances.items():
            batch = next(batches)
            guidance.update_step(0, o.steps)
            begin = time.perf_counter()
            rgb = system(batch)["comp_rgb"]
            rendered = time.perf_counter()
            image = rgb.detach().requires_grad_()  # the same gradient in two parts, to time them apart
            loss = guidance(image, prompts(), **batch, rgb_as_latents=False)["loss_sds"]
            (on_image,) = torch.autograd.grad(loss, image)
            guided = time.perf_counter()
            gradient = torch.autograd.grad(rgb, parameters, on_image)
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - begin)
                in_guidance[name].append(guided - rendered)
                drawn[name].append(torch.cat([g.flatten() for g in gradient]))

    gradients = {name: torch.stack(g) for name, g in drawn.items()}
    cost = {name: statistics.median(s) for name, s in seconds.items()}
    base = next(iter(VARIANTS))
    print(f"\n{o.model}, {o.prompt!r}, {o.width}² renders of {o.samples} samples a ray, frozen after {o.steps} steps, "
          f"{o.repeats} gradients each, {torch.get_num_threads()} threads, torch {torch.__version__}\n")  # fmt: skip
    print("| guidance | ms a step | of stock | ms in guidance | of stock | variance of stock | ECM [95 %] |")
    print("|---|---|---|---|---|---|---|")
    apart = {name: statistics.median(s) for name, s in in_guidance.items()}
    for name, g in gradients.items():
        found = ecm_interval(gradients[base], cost[base], g, cost[name], generator=torch.Generator().manual_seed(0))
        print(f"| {name} | {cost[name] * 1e3:.0f} | {cost[name] / cost[base]:.2f} "
              f"| {apart[name] * 1e3:.0f} | {apart[name] / apart[base]:.2f} "
              f"| {total_variance(g) / total_variance(gradients[base]):.3f} "
              f"| {found.value:.2f} [{found.low:.2f}, {found.high:.2f}] |")  # fmt: skip


if __name__ == "__main__":
    run_script(main)
