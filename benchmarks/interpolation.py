"""The compiled interpolations of the CPU fields against torch's own: forward and backward for the samples of an image.

    ./install.sh python benchmarks/interpolation.py [--points 147456] [--repeats 7] [--threads 1]

Medians of interleaved repeats; 147,456 points are a 64 x 64 image with 36 samples a ray.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from bench import interleaved, script_parser
from torch import Tensor

from carv_3d.scenes.hashed import interpolate_hashed, interpolate_hashed_reference
from carv_3d.scenes.trilinear import interpolate, interpolate_reference


def seconds(call: Callable[[Tensor, Tensor], Tensor], values: Tensor, x: Tensor) -> tuple[float, float]:
    """Of forward and of backward."""
    begin = time.perf_counter()
    out = call(values, x)
    middle = time.perf_counter()
    torch.autograd.grad(out, values, torch.ones_like(out))
    return middle - begin, time.perf_counter() - middle


def main() -> None:
    o = script_parser(__doc__, points=147_456, repeats=7, threads=1).parse_args()
    torch.set_num_threads(o.threads)
    x = 2 * torch.rand(o.points, 3, generator=torch.Generator().manual_seed(0)) - 1
    voxels, table = torch.randn(48, 48, 48, 4).requires_grad_(), torch.randn(2**17, 2).requires_grad_()
    pairs: dict[str, tuple[Tensor, Callable[..., Tensor], Callable[..., Tensor]]] = {
        "voxel grid, 48^3 x 4": (voxels, interpolate, interpolate_reference),
        "one hashed level, 2^17 x 2, 154^3 nodes": (
            table,
            lambda v, p: interpolate_hashed(v, p, 154),
            lambda v, p: interpolate_hashed_reference(v, p, 154),
        ),
    }
    print(f"{o.points:,} points, {o.threads} threads, torch {torch.__version__}, ms\n")
    print("| | forward, compiled | torch | backward, compiled | torch | both, ratio |\n|---|---|---|---|---|---|")
    for name, (values, fast, slow) in pairs.items():
        calls = {call: partial(seconds, call, values, x) for call in (fast, slow)}
        interleaved(calls, 1)  # compiled once, before they are timed
        taken = interleaved(calls, o.repeats)
        (f, b), (tf, tb) = ([1e3 * statistics.median(part) for part in zip(*taken[c])] for c in (fast, slow))
        print(f"| {name} | {f:.1f} | {tf:.1f} | {b:.1f} | {tb:.1f} | {(tf + tb) / (f + b):.1f} |")


if __name__ == "__main__":
    main()
