"""Memory and open files over many steps, of the library's core and of a small scene: both must stay flat.

    ./install.sh python benchmarks/soak.py [--core 20000] [--scene 2000] [--every 100] [--out docs/results/soak.csv]

The core's steps anneal grad_clip and the range of timesteps, so that each has values of its own, and every second one
learns (adaptive proposal, control variate). The scene's are a whole run of `carv generate` with checkpoints and
previews. The slope is a least-squares line through the resident memory of the second half. Linux alone (/proc).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from bench import run_script, script_parser
from torch import Tensor

from carv_3d.core.estimator import CarvEstimator, EstimatorOptions
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.core.sds import sds_loss
from carv_3d.generate.config import load_config
from carv_3d.generate.run import SceneRun
from carv_3d.generate.trainer import TextTo3D
from carv_3d.io.files import write_atomic, write_via
from carv_3d.io.tables import csv_text
from carv_3d.runs.progress import Display

SCENE = (
    "device=cpu", "data.width=32", "data.height=32", "data.n_test_views=4", "system.geometry_type=voxel",
    "system.geometry.resolution=24",
    "system.renderer.num_samples_per_ray=16", "checkpoint.every_n_train_steps=50", "trainer.val_check_interval=100",
)  # fmt: skip


class Reading(NamedTuple):
    """What a process holds after a step."""

    part: str
    step: int
    resident_bytes: int
    open_files: int
    seconds: float


class Meter:
    """Reads this process after every `every`th step of a part."""

    def __init__(self, part: str, every: int) -> None:
        self.part, self.every = part, every
        self.begin, self.readings = time.perf_counter(), list[Reading]()

    def __call__(self, step: int) -> None:
        if step % self.every == 0:
            seconds = round(time.perf_counter() - self.begin, 1)
            self.readings.append(Reading(self.part, step, resident(), len(os.listdir("/proc/self/fd")), seconds))


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def core_steps(steps: int, after: Callable[[int], None]) -> None:
    """Steps of `sds_loss`, and of an estimator that learns, on latents (2, 4, 8, 8)."""
    schedule = NoiseSchedule.scaled_linear()
    learning = CarvEstimator(schedule, EstimatorOptions(proposal="adaptive", control_variate=True))
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(2, 4, 8, 8, generator=generator).requires_grad_()

    def eps_hat(z_t: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(0.7 * z_t)

    for step in range(1, steps + 1):
        high = 980 - step % 500
        if step % 2:
            loss = sds_loss(theta, eps_hat, schedule, generator=generator, grad_clip=2 + step / 1000, max_step=high)
        else:
            learning.set_range(20, high)
            loss = learning.estimate(theta, eps_hat, generator=generator, grad_clip=2 + step / 1000).loss
        (theta.grad,) = torch.autograd.grad(loss, theta)
        after(step)


def scene_steps(steps: int, after: Callable[[int], None], overrides: Sequence[str] = ()) -> None:
    """A run of `carv generate` in a folder that is thrown away; one step more, after which the result is scored."""
    words = [*SCENE, f"trainer.max_steps={steps + 1}", *overrides]
    host = TextTo3D(load_config(overrides=words, prompt="a red mug"))
    with tempfile.TemporaryDirectory() as folder:
        run = SceneRun(host, Path(folder), Display(quiet=True))
        keep = run.append

        def append(row: dict[str, float]) -> None:
            keep(row)
            after(host.step)

        run.append = append  # type: ignore[method-assign]
        run.open(resume=False)
        run.train()


def slope(readings: Sequence[Reading]) -> float:
    """Bytes of resident memory a step, over the second half."""
    half = readings[len(readings) // 2 :]
    return float(np.polyfit([r.step for r in half], [r.resident_bytes for r in half], 1)[0])


def descriptors(readings: Sequence[Reading]) -> int:
    """How many more files were open at the end than half way."""
    return readings[-1].open_files - readings[len(readings) // 2].open_files


def image(parts: Sequence[Sequence[Reading]], path: Path) -> None:
    """Resident memory over the steps, a panel for each part with its slope."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, readings in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts):
        axes.plot([r.step for r in readings], [r.resident_bytes / 2**20 for r in readings], color="#30638e")
        axes.set_title(f"{readings[0].part}: {slope(readings):+.0f} bytes a step in the second half", fontsize=9)
        axes.set(
            xlabel="step",
            ylabel="resident memory, MiB",
            ylim=(0, max(r.resident_bytes for r in readings) / 2**20 * 1.25),
        )
        axes.grid(alpha=0.25)

    def write(temporary: Path) -> None:
        figure.savefig(temporary, dpi=130)

    write_via(path, write)


def main() -> int:
    """Prints both slopes, writes the readings and the figure; 1 where something grows."""
    parser = script_parser(__doc__, core=20_000, scene=2_000, every=100)
    parser.add_argument("--out", type=Path, default=Path("docs/results/soak.csv"))
    parser.add_argument("--figure", type=Path, default=Path("docs/soak.png"))
    o = parser.parse_args()
    parts, grows = [], False
    for part, steps, work in (("core", o.core, core_steps), ("scene", o.scene, scene_steps)):
        meter = Meter(part, max(1, min(o.every, steps // 20)))
        work(steps, meter)
        parts.append(meter.readings)
        each, more = slope(meter.readings), descriptors(meter.readings)
        print(f"{part}: {steps} steps, {each:+.0f} bytes a step, {more:+d} open files", flush=True)
        grows |= each > 1024 or more > 0
    write_atomic(o.out, csv_text(list(Reading._fields), [tuple(r) for readings in parts for r in readings]))
    image(parts, o.figure)
    return int(grows)


if __name__ == "__main__":
    run_script(main)
