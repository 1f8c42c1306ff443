"""The patches of `examples/hosts` in the repositories that they are for: is the objective kept, and what is gained?

    python benchmarks/hosts.py NAME CHECKOUT [--steps 60] [--repeats 40] [--draws 1,2,4,8,16] [--anneal]

NAME is stable-dreamfusion, dreamgaussian or nerfstudio, CHECKOUT a clone of it, which is only read. Needs the packages
that its guidance imports without CUDA (opencv-python-headless, jaxtyping, tyro, pandas, torch-ema); what needs CUDA is
stood in for, see `host_stand_ins` and `host_drivers`.

First a random Stable Diffusion of 512 x 512 images: the gradient of one uniform draw against the loop's own for the
same noise, and the calls of a step of 8 draws. Then carv-tiny, at its own sizes: the scene is trained for --steps
steps of 4 draws and frozen; every step of the loop then gets a fresh camera. Seconds are of the process, on one
thread. ECM = (variance seconds of the loop's own step) / (variance seconds), with its 95 % bootstrap interval. The
rows of NAME go to docs/results/hosts.csv.
"""

from __future__ import annotations

import contextlib
import csv
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from bench import interleaved, run_script, script_parser, whole_numbers  # noqa: E402
from host_drivers import DRIVERS, Loop, seed_all, take_teacher  # noqa: E402
from small_models import build_sd_folder  # noqa: E402

from carv_3d import CarvEstimator, Draws, StableDiffusionTeacher, sds_loss  # noqa: E402
from carv_3d.core.variance import total_variance  # noqa: E402
from carv_3d.errors import CarvError  # noqa: E402
from carv_3d.stats.bootstrap import ecm_interval  # noqa: E402

COLUMNS = ["host", "step", "seconds", "variance", "ecm", "ecm_low", "ecm_high"]
OUT = ROOT / "docs" / "results" / "hosts.csv"


def patched(name: str, checkout: Path, folder: Path) -> Path:
    """A copy of the checkout with the patch in it."""
    copy = folder / name
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git"))
    patch = ROOT / "examples" / "hosts" / f"{name}.patch"
    done = subprocess.run(["git", "apply", str(patch)], cwd=copy, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CarvError(f"{patch.name} does not fit {checkout}: {done.stderr.strip()}; check out the commit it names.")
    return copy


@contextlib.contextmanager
def replaced(owner: Any, **names: Any) -> Iterator[None]:
    """Attributes of `owner`, for a while."""
    before = {name: getattr(owner, name) for name in names}
    for name, value in names.items():
        setattr(owner, name, value)
    yield
    for name, value in before.items():
        setattr(owner, name, value)


def gradient(loop: Loop, images: Tensor, draws: int) -> Tensor:
    """Of the guidance's loss, with respect to the images, at one and the same seed."""
    loop.guidance.num_draws = draws
    seed_all(5)
    return torch.autograd.grad(loop.loss(images), images)[0]


def parity(loop: Loop) -> float:
    """|ours - stock| / |stock|, of one uniform draw and the stock step with the same noise."""
    images, kept = torch.rand(1, 3, 64, 64).requires_grad_(), []
    draw, randn_like = CarvEstimator.draw, torch.randn_like

    def recorded(*args: Any, **kwargs: Any) -> Draws:
        kept.append(draw(*args, **kwargs))
        return kept[-1]

    uniform = partial(sds_loss, proposal="uniform", stratify="none")
    fixed = {"randint": lambda *_, **__: torch.tensor([500])}  # a loop that draws t before it encodes; it is not used
    with (
        replaced(CarvEstimator, draw=recorded),
        replaced(loop.module, sds_loss=uniform),
        replaced(loop.module.torch, **fixed),
    ):
        ours = gradient(loop, images, 1)
    t, eps = kept[-1].t[:, 0], kept[-1].eps[:, 0]
    noise = lambda x, **more: eps.to(x) if x.shape == eps.shape else randn_like(x, **more)  # noqa: E731
    with replaced(loop.module.torch, randint=lambda *_, **__: t, randn_like=noise):
        stock = gradient(loop, images, 0)
    return float((ours - stock).norm() / stock.norm())


def calls(loop: Loop) -> str:
    """What a step of 8 draws calls."""
    counts = {"encodings": 0, "samples": 0, "backwards": 0}
    vae, images = getattr(loop.guidance, loop.vae), torch.rand(1, 3, 64, 64).requires_grad_()
    encode, forward = vae.encode, loop.guidance.unet.forward

    def counted(name: str, function: Any, x: Tensor, *args: Any, **more: Any) -> Any:
        counts[name] += len(x)
        return function(x, *args, **more)

    images.register_hook(lambda _: counts.update(backwards=counts["backwards"] + 1))
    with (
        replaced(vae, encode=partial(counted, "encodings", encode)),
        replaced(loop.guidance.unet, forward=partial(counted, "samples", forward)),
    ):
        gradient(loop, images, 8)
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def step(loop: Loop, draws: int, seeds: Iterator[int]) -> tuple[float, Tensor]:
    """Seconds and gradient (P,) of a step on a fresh camera; 0 draws is the loop's own."""
    for p in loop.parameters():
        p.grad = None
    loop.guidance.num_draws = draws
    seed_all(next(seeds))
    begin = time.process_time()
    loop.backward()
    seconds = time.process_time() - begin
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in loop.parameters()]
    return seconds, torch.cat([g.reshape(-1) for g in parts]).clone()


def measure(loop: Loop, name: str, draws: tuple[int, ...], steps: int, repeats: int) -> list[dict[str, Any]]:
    """The rows of the table, the loop's own step first."""
    seeds = iter(range(10**6, 10**9))
    optimizer = torch.optim.Adam(loop.parameters(), lr=loop.lr)
    for _ in range(steps):
        step(loop, 4, seeds)
        optimizer.step()
    results = interleaved({K: partial(step, loop, K, seeds) for K in (0, *draws)}, repeats)
    gradients = {K: torch.stack([g for _, g in result]) for K, result in results.items()}
    cost = {K: statistics.median(seconds for seconds, _ in result) for K, result in results.items()}
    rows = []
    for K, g in gradients.items():
        ecm = ecm_interval(gradients[0], cost[0], g, cost[K])
        values = [name, f"K = {K}" if K else "stock", f"{cost[K]:.4f}", f"{total_variance(g):.5g}"]
        rows.append(dict(zip(COLUMNS, [*values, *(f"{x:.2f}" for x in (ecm.value, ecm.low, ecm.high))])))
    return rows


def write(rows: list[dict[str, Any]]) -> None:
    """Puts the rows in the table, in the place of those of the same host."""
    kept = list(csv.DictReader(OUT.open())) if OUT.is_file() else []
    kept = [row for row in kept if row["host"] != rows[0]["host"]]
    with OUT.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*kept, *rows], key=lambda row: row["host"]))


def main() -> None:
    parser = script_parser(__doc__, steps=60, repeats=40)
    parser.add_argument("name", choices=sorted(DRIVERS))
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--draws", type=whole_numbers, default="1,2,4,8,16")
    parser.add_argument("--anneal", action="store_true", help="dreamgaussian: its timestep falls with the steps")
    o = parser.parse_args()
    torch.set_num_threads(1)
    import diffusers
    import torchmetrics  # noqa: F401, before there are stand-ins

    assert diffusers.StableDiffusionPipeline
    assert diffusers.PNDMScheduler
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = build_sd_folder(folder / "model", latent=64, levels=4)
        more = {"anneal": True} if o.anneal else {}
        loop = DRIVERS[o.name](patched(o.name, o.checkout.resolve(), folder), model, **more)
        print(f"\n{o.name}: K = 1, uniform, differs by {parity(loop):.1e} of the gradient; 8 draws: {calls(loop)}\n")
        teacher = StableDiffusionTeacher.load("carv-tiny", device="cpu")
        take_teacher(loop, teacher)
        rows = measure(loop, o.name + (" annealed" if o.anneal else ""), o.draws, o.steps, o.repeats)
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    write(rows)


if __name__ == "__main__":
    run_script(main)
