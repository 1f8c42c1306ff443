"""Changes of a run that are no option: what `asset_options.py` does in place of `assets.all_steps`."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from assets import all_steps
from torch import Tensor

from carv_3d.generate.trainer import TextTo3D
from carv_3d.scenes.cameras import CameraOptions, Cameras
from carv_3d.scenes.rendering import RenderOutput

LEVELS = (0.2, 0.35, 0.5, 0.65, 0.8)  # t / T, at which a teacher is asked
VIEWS = 8
AMBIENT = 0.5


def averaged(host: TextTo3D, decay: float) -> None:
    """All steps; the field becomes the exponential moving average of its parameters."""
    parameters = list(host.field.parameters())
    average = [p.detach().clone() for p in parameters]

    def follow() -> None:
        for a, p in zip(average, parameters, strict=True):
            a.lerp_(p.detach(), 1 - decay)

    all_steps(host, after=follow)
    with torch.no_grad():
        for a, p in zip(average, parameters, strict=True):
            p.copy_(a)


def coarse_to_fine(host: TextTo3D, first: int, until: int) -> None:
    """All steps; the hash grid has its first levels, and all of them from step `until` on."""
    levels: int = host.field.active_levels

    def follow() -> None:
        host.field.active_levels = min(levels, int(first + (levels - first + 0.999) * host.step / until))

    follow()
    all_steps(host, after=follow)


def larger(host: TextTo3D, size: int, begin: int) -> None:
    """All steps; from step `begin` on, renders have `size` x `size` pixels."""

    def follow() -> None:
        if host.step == begin:
            host.config = replace(host.config, data=replace(host.config.data, width=size, height=size))

    all_steps(host, after=follow)


def depth_normals(points: Tensor) -> Tensor:
    """Unit normals (B, H, W, 3) of the surface through `points` of the same shape, by differences of neighbors.

    They point to the side from which x and y of an image run to the right and down.
    """
    right = F.pad(points[:, :, 2:] - points[:, :, :-2], (0, 0, 1, 1))
    down = F.pad(points[:, 2:] - points[:, :-2], (0, 0, 0, 0, 1, 1))
    return F.normalize(torch.cross(down, right, dim=-1), dim=-1)


def shade(out: RenderOutput, cameras: Cameras, light: Tensor) -> RenderOutput:
    """The render, lit in addition from `light` (3,), a point; behind what is half opaque the background darkens too."""
    rays = cameras.rays(*out.comp_rgb.shape[1:3])
    points = rays.origins + out.depth * rays.directions
    lambert = (depth_normals(points) * F.normalize(light - points, dim=-1)).sum(-1, keepdim=True).clamp_min(0)
    dark = 1 - AMBIENT - (1 - AMBIENT) * lambert
    return replace(out, comp_rgb=out.comp_rgb * (1 - out.opacity * dark))


def shaded(host: TextTo3D, share: float) -> None:
    """All steps; in a share of them renders are lit from a point around the camera, by normals of their depth."""
    render, generator = host.render, torch.Generator().manual_seed(host.config.seed)

    def lit(R: int | None, data: CameraOptions) -> tuple[RenderOutput, Cameras]:
        out, cameras = render(R, data)
        if torch.rand((), generator=generator) >= share:
            return out, cameras
        return shade(out, cameras, cameras.position[0] + torch.randn(3, generator=generator)), cameras

    host.render = lit
    try:
        all_steps(host)
    finally:
        host.render = render


@torch.no_grad()
def disagreement(host: TextTo3D) -> float:
    """By how much the text raises the teacher's error on the asset's views; below 0 where the text explains them."""
    teacher, cameras = host.teacher, host.orbit(VIEWS)
    images = host.views(cameras, teacher.image_size, teacher.image_size).permute(0, 3, 1, 2)
    z, text = teacher.encode(images, sample=False), host.view_text(cameras)
    generator, total = torch.Generator().manual_seed(0), 0.0
    for level in LEVELS:
        t = torch.full((VIEWS,), round(level * teacher.schedule.num_train_timesteps))
        eps = torch.randn(z.shape, generator=generator)
        z_t = teacher.schedule.add_noise(z, eps, t)
        error, without = (
            (teacher.eps_hat(z_t, t, e.expand(VIEWS, -1, -1)) - eps).square().mean() for e in (text.text, text.uncond)
        )
        total += float(error - without)
    return total


def best_seed(host: TextTo3D, runs: int) -> None:
    """All steps of several seeds; the host gets the field on which its teacher agrees most with the text."""
    others = [TextTo3D(replace(host.config, seed=host.config.seed + 1000 * i), host.teacher) for i in range(1, runs)]
    for run in (host, *others):
        all_steps(run)
    best = min((host, *others), key=disagreement)
    host.field.load_state_dict(best.field.state_dict())
