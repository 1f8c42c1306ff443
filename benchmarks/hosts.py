"""The patches of `examples/hosts` in the repositories that they are for: is the objective kept, and what is gained?

    python benchmarks/hosts.py NAME CHECKOUT [--steps 40] [--repeats 16] [--draws 1,2,4,8] [--anneal]

NAME is stable-dreamfusion, dreamgaussian, nerfstudio or gaussiandreamer, CHECKOUT a clone of it, which is only read.
Needs the packages that its guidance imports without CUDA (opencv-python-headless, jaxtyping, tyro, pandas, torch-ema;
for GaussianDreamer threestudio's and plyfile); what needs CUDA is stood in for, see `host_stand_ins`.

First a random Stable Diffusion of 512 x 512 images: the gradient of one uniform draw against the loop's own for the
same noise, and the calls of a step of 8 draws. Then carv-tiny, at its own sizes: the same error, and the scene is
trained for --steps steps of 4 draws and frozen. In every repeat each layout takes two steps on one and the same fresh
camera: their difference gives V_in, and the covariance of the two over cameras, of all layouts together, s_out^2, which
no K changes. Seconds are of the process, on one thread. ECM = ((s_out^2 + V_in) seconds of the loop's own step) /
((s_out^2 + V_in) seconds), with its 95 % bootstrap interval over cameras. The rows of NAME go to
docs/results/hosts.csv.
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
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from bench import run_script, script_parser, whole_numbers  # noqa: E402
from host_drivers import DRIVERS, TEACHER, Loop, seed_all, take_teacher  # noqa: E402
from host_gaussians import gaussiandreamer  # noqa: E402
from small_models import build_sd_folder  # noqa: E402

from carv_3d import CarvEstimator, Draws, StableDiffusionTeacher, sds_loss  # noqa: E402
from carv_3d.core.variance import half_square  # noqa: E402
from carv_3d.errors import CarvError  # noqa: E402
from carv_3d.stats.bootstrap import SEED, counts  # noqa: E402

COLUMNS = ["host", "step", "seconds", "inner", "outer", "ecm", "ecm_low", "ecm_high"]
OUT = ROOT / "docs" / "results" / "hosts.csv"
LOOPS: dict[str, Callable[..., Loop]] = {**DRIVERS, "gaussiandreamer": gaussiandreamer}


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

    by_patch = replaced(loop.module, sds_loss=partial(sds_loss, proposal="uniform", stratify="none"))
    fixed = {"randint": lambda *_, **__: torch.tensor([500])}  # a loop that draws t before it encodes; it is not used
    with (
        replaced(CarvEstimator, draw=recorded),
        by_patch if loop.uniform is None else loop.uniform(),
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
    counts, loop.guidance.num_draws = {"encodings": 0, "samples": 0, "backwards": 0}, 8
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


def step(loop: Loop, draws: int, seed: int, draw_seed: int) -> tuple[float, Tensor]:
    """Seconds and gradient (P,) of a step on the camera of a seed; 0 draws is the loop's own."""
    for p in loop.parameters():
        p.grad = None
    loop.guidance.num_draws, loop.draw_seed = draws, draw_seed
    seed_all(seed)
    begin = time.process_time()
    loop.backward()
    seconds = time.process_time() - begin
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in loop.parameters()]
    return seconds, torch.cat([g.reshape(-1) for g in parts]).clone()


def measure(loop: Loop, name: str, draws: tuple[int, ...], steps: int, repeats: int) -> list[dict[str, Any]]:
    """The rows of the table, the loop's own step first."""
    optimizer = torch.optim.Adam(loop.parameters(), lr=loop.lr)
    for n in range(steps):
        step(loop, 4, n, 10**6 + n)
        optimizer.step()
    layouts, seeds = (0, *draws), iter(range(2 * 10**6, 10**9))
    seconds: dict[int, list[float]] = {K: [] for K in layouts}
    inner, means = torch.zeros(repeats, len(layouts), dtype=torch.float64), []
    for n in range(repeats):
        pairs = []
        for i, K in enumerate(layouts):
            (first, a), (second, b) = (step(loop, K, 10**5 + n, next(seeds)) for _ in range(2))
            seconds[K] += [first, second]
            inner[n, i] = half_square(a - b)
            pairs.append(torch.stack([a, b]).double())
        means.append(torch.stack(pairs).mean(0))
    a, b = torch.stack(means).unbind(1)  # (repeats, P) each: one upstream sample, independent draws
    cost = torch.tensor([statistics.median(seconds[K]) for K in layouts], dtype=torch.float64)
    once = torch.ones(1, repeats, dtype=torch.float64)
    outer, V = variances(a @ b.T, inner, once)
    _, resampled = variances(a @ b.T, inner, counts(repeats, SEED))
    ecm = resampled[:, :1] * cost[0] / (resampled * cost)
    rows = []
    for i, K in enumerate(layouts):
        low, high = torch.quantile(ecm[:, i], torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        value = float(V[0, 0] * cost[0] / (V[0, i] * cost[i]))
        figures = [f"{x:.4g}" for x in (float(cost[i]), float(inner[:, i].mean()), float(outer[0]))]
        rows.append(dict(zip(COLUMNS, [name, f"K = {K}" if K else "stock", *figures,
                                       *(f"{x:.2f}" for x in (value, low, high))])))  # fmt: skip
    return rows


def variances(gram: Tensor, inner: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """s_out^2 (M,), not below 0, and s_out^2 + V_in of each layout (M, layouts), of M resamples.

    Args:
        gram: (N, N), inner products of the two gradients of all pairs.
        inner: (N, layouts), samples of V_in.
        times: (M, N), how often each of the N upstream samples counts.
    """
    n = times.sum(1)
    outer = (times @ gram.diagonal() - torch.einsum("mi,ij,mj->m", times, gram, times) / n) / (n - 1)
    outer = outer.clamp_min(0)
    return outer, outer[:, None] + times @ inner / n[:, None]


def write(rows: list[dict[str, Any]]) -> None:
    """Puts the rows in the table, in the place of those of the same host."""
    kept = list(csv.DictReader(OUT.open())) if OUT.is_file() else []
    kept = [row for row in kept if row["host"] != rows[0]["host"]]
    with OUT.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*kept, *rows], key=lambda row: row["host"]))


def main() -> None:
    parser = script_parser(__doc__, steps=40, repeats=16)
    parser.add_argument("name", choices=sorted(LOOPS))
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--draws", type=whole_numbers, default="1,2,4,8")
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
        loop = LOOPS[o.name](patched(o.name, o.checkout.resolve(), folder), model, **more)
        print(f"\n{o.name}: K = 1, uniform, differs by {parity(loop):.1e} of the gradient; 8 draws: {calls(loop)}\n")
        take_teacher(loop, StableDiffusionTeacher.load(TEACHER, device="cpu"))
        print(f"with {TEACHER} by {parity(loop):.1e}\n")
        rows = measure(loop, o.name + (" annealed" if o.anneal else ""), o.draws, o.steps, o.repeats)
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    write(rows)


if __name__ == "__main__":
    run_script(main)
