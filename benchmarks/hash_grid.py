"""A step's render, forward and backward, of the fused hash grid against the torch paths, interleaved in one run.

    ./install.sh python benchmarks/hash_grid.py [--repeats 7] [--threads 2] [--samples 36] [--out FILE]

Three paths: `fused` skips empty cells, `reference` is the same field in torch alone, `hash` the older hash-grid field.
All have an object of the same shape, a sphere with a hard edge. The loss is what carv-tiny's configuration minimizes:
a residual on the image, mean density and opacity. The machine may be busy: so the least wall time of the repeats, and
the least processor time, are shown; ratios are to `fused`.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import torch
from bench import interleaved, script_parser, show_table

from carv_3d.scenes.cameras import orbit
from carv_3d.scenes.fields import FieldOptions, FusedHashField, make_field
from carv_3d.scenes.regularizers import REGULARIZERS
from carv_3d.scenes.rendering import RenderOptions, VolumeRenderer

HEADER = ["size", "samples_per_ray", "path", "wall_ms", "wall_ratio", "cpu_ms", "cpu_ratio", "threads", "load"]


class Reference(FusedHashField):
    """The fused field without its loops."""

    def compiled(self) -> None:
        return None


def renderer(path: str, samples: int) -> VolumeRenderer:
    torch.manual_seed(0)
    options = FieldOptions(blob_scale=60.0)  # the edge of an object that has been trained
    field = Reference(options) if path == "reference" else make_field(path, options)
    out = VolumeRenderer(field, RenderOptions(num_samples_per_ray=samples)).train()
    out.update(0)
    return out


def seconds(side: VolumeRenderer, size: int) -> tuple[float, float]:
    """Wall and processor seconds of a render, forward and backward."""
    rays = orbit(1, elevation=20.0, distance=2.75, fovy=39.0).rays(size, size)
    begun, worked = time.perf_counter(), time.process_time()
    out = side(rays, torch.ones(3), torch.Generator().manual_seed(1))
    residual = torch.randn(out.comp_rgb.shape, generator=torch.Generator().manual_seed(2))
    terms = [20 * REGULARIZERS["density"](side.field, out), 50 * REGULARIZERS["opacity"](side.field, out)]
    (torch.stack(terms).sum() + (out.comp_rgb * residual).sum()).backward()
    side.field.zero_grad(set_to_none=True)
    return time.perf_counter() - begun, time.process_time() - worked


def main() -> None:
    parser = script_parser(__doc__, repeats=7, threads=2, samples=36)
    parser.add_argument("--out", type=Path, help="a CSV")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    rows = []
    for size in (64, 128):
        sides = {path: renderer(path, o.samples) for path in ("fused", "reference", "hash")}
        calls = {path: partial(seconds, side, size) for path, side in sides.items()}
        interleaved(calls, 1)
        taken = interleaved(calls, o.repeats)
        least = {path: [1e3 * min(kind) for kind in zip(*each)] for path, each in taken.items()}
        for path, (wall, cpu) in least.items():
            ratios = wall / least["fused"][0], cpu / least["fused"][1]
            rows.append([size, o.samples, path, wall, ratios[0], cpu, ratios[1], o.threads, os.getloadavg()[0]])
    show_table(HEADER, rows, o.out)


if __name__ == "__main__":
    main()
