"""`carv-gaussian-splatting`: where a render costs less than a draw, `num_draws: auto` takes few draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import host_double as double
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from carv_3d.core.costs import CostMeter

R = 2  # renders of a step
DRAW = 1.0  # what a draw costs: Stable Diffusion's UNet on a pair of samples, 1.61 TFLOP
ENCODE = 1.4  # encoder and its backward, 2.27 TFLOP
SPLAT, NERF = 0.1, 8.0  # a render and its backward: a rasterizer on a GPU, a field with hundreds of samples a ray


def configuration() -> Any:
    return OmegaConf.load(double.EXTENSION / "configs" / "carv-gaussian-splatting.yaml").system


class SimulatedMeter(CostMeter):
    """A clock that stands still unless it is moved."""

    time = 0.0

    def now(self) -> float:
        return self.time


class Splats:
    """16 points of one size and a color, seen from all sides; the image is their mixture at each pixel."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.points = torch.randn(16, 3, generator=g).requires_grad_()
        self.colors = torch.randn(16, 3, generator=g).requires_grad_()
        self.generator = g

    def render(self, n: int = R) -> Tensor:
        """n images (n, 16, 16, 3) from random sides."""
        angle = 2 * torch.pi * torch.rand(n, 1, generator=self.generator)
        x, y, z = self.points.T
        seen = torch.stack([angle.cos() * x + angle.sin() * y, z.expand(n, -1)], -1)  # (n, 16, 2)
        depth = angle.cos() * y - angle.sin() * x
        side = torch.linspace(-2, 2, 16)
        pixels = torch.cartesian_prod(side, side)
        away = (pixels[None, :, None] - seen[:, None]).square().sum(-1)  # (n, 256, 16)
        weights = torch.softmax(-4 * away - 2 * depth[:, None], -1)
        return (weights @ self.colors.sigmoid()).view(n, 16, 16, 3)


class Run:
    """The configuration's guidance on splats, under a clock of what things cost."""

    def __init__(self, host: Any, model: Path, render: float) -> None:
        cfg = configuration()
        given = {**OmegaConf.to_container(cfg.guidance), "pretrained_model_name_or_path": str(model), "seed": 0}
        self.guidance = host.modules[cfg.guidance_type](given)
        self.carv = self.guidance._carv
        self.meter = self.carv.estimator.meter = self.carv.auto.times.meter = SimulatedMeter()
        self.scene, self.cost = Splats(), R * (render + ENCODE)
        eps_hat, pull = self.carv.teacher.eps_hat, 2 * torch.randn(4, 8, 8, generator=self.scene.generator)

        def timed(z_t: Tensor, *given: Tensor) -> Tensor:
            self.meter.time += DRAW * len(z_t) / 2  # the text and the empty text are a sample each
            return eps_hat(z_t, *given) + pull  # random weights pull nowhere, and then all variance is of the draws

        self.carv.teacher.eps_hat = timed
        self.prompts = double.PromptUtils(
            *torch.randn(2, 1, 20, 16, generator=self.scene.generator).expand(2, R, 20, 16)
        )
        self.views = {name: torch.zeros(R) for name in ("elevation", "azimuth", "camera_distances")}

    def step(self, number: int) -> float:
        """One step up to the backward; returns the K that it was taken with."""
        self.guidance.update_step(0, number)
        self.meter.time += self.cost
        out = self.guidance(self.scene.render(), self.prompts, **self.views, rgb_as_latents=False)
        out["loss_sds"].backward()
        return out["K_auto"]

    def work(self, K: int, steps: int = 24) -> float:
        """Variance of the points' gradient by what a step costs, measured with a fixed K."""
        rows = []
        auto, self.carv.auto, self.carv.estimator.num_draws = self.carv.auto, None, K
        for _ in range(steps):
            out = self.guidance(self.scene.render(), self.prompts, **self.views)
            parameters = (self.scene.points, self.scene.colors)
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(out["loss_sds"], parameters)]))
        self.carv.auto = auto
        return float(torch.stack(rows).double().var(0).sum()) * (self.cost + R * DRAW * K)


def test_the_configuration_asks_for_auto() -> None:
    assert (
        OmegaConf.load(double.EXTENSION / "configs" / "carv-gaussian-splatting.yaml").system.guidance.num_draws
        == "auto"
    )


@pytest.mark.parametrize(("render", "few"), [(SPLAT, True), (NERF, False)])
def test_auto_takes_few_draws_where_a_render_is_cheap(render: float, few: bool, host: Any, sd_folder: Path) -> None:
    run = Run(host, sd_folder, render)
    assert run.step(0) == 4  # until something is measured
    K = [run.step(number) for number in range(1, 12)][-1]  # a burst of measured steps
    variances = run.carv.auto.variances
    assert variances.bursts == 1
    assert 0.2 < variances.outer / (variances.outer + variances.inner(1)) < 0.6  # upstream's share, as in real runs
    assert (K <= 2) == few
    assert run.work(int(K)) < run.work(8 if few else 1)  # as fixed K have it, on fresh cameras
