"""Make the gradients of carv-tiny's training images that come with the package: carv_3d/assets/attribution.

Each image has the draws and options that are the defaults of `carv attribute`. Rows are made in --folder, where a run
that was cut off is resumed, and several processes may share them as --shard I/N. The process that finds all of them
made packs them: as codes with a scale a row, with the ridge of their metric, under a key of the model's weights.

    ./install.sh python benchmarks/attribution_store.py --folder FOLDER [--items 10000] [--shard 0/1] [--ridge 3]
        [--out FILE]
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from bench import run_script, script_parser

from carv_3d.attribution import FeatureMaker, GradientModel
from carv_3d.attribution.encoded import EncodedImages, encoder_fingerprints
from carv_3d.attribution.request import AttributeOptions
from carv_3d.attribution.shipped import PATH, DrawnImages, key, load, save
from carv_3d.errors import CarvError
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher


def main() -> None:
    """Make what is missing, then the file."""
    parser = script_parser(__doc__, items=10_000, threads=1)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--ridge", type=float, default=3.0, help="of the metric, chosen by attribution_sense.py")
    parser.add_argument("--out", type=Path, default=PATH)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    options = AttributeOptions(query="a red mug", shard=o.shard)
    teacher = StableDiffusionTeacher.load("carv-tiny")
    maker = FeatureMaker(GradientModel.from_teacher(teacher), options.features)
    items = EncodedImages(DrawnImages(range(o.items)), teacher, o.folder / "latents")
    items.encode()
    store, begin = maker.open_store(o.folder / "gradients", items), time.perf_counter()

    def show(done: int, total: int) -> bool:
        if done % 160 == 0:
            print(f"{done} of {total}, {time.perf_counter() - begin:.0f} s", flush=True)
        return False

    maker.fill(store, items, *options.share, show)
    if store.complete:
        pack(o.out, store.rows, range(o.items), key(maker, encoder_fingerprints(teacher)), o.ridge)


def pack(path: Path, rows: np.ndarray, index: Sequence[int], expected: dict, ridge: float) -> None:
    """Writes the file, reads it back and prints what rounding did."""
    save(path, rows, np.asarray(index), expected, ridge)
    read = load(expected, path=path)
    if isinstance(read, str):
        raise CarvError(read)
    lost = float(np.square(read.rows.numpy() - rows).sum() / np.square(rows).sum())
    size = path.stat().st_size / 1e6
    print(f"{path}: {len(rows)} images, {rows.shape[1]} groups of {rows.shape[2]} numbers, {size:.1f} MB; rounding "
          f"took {lost:.2%} of their square")  # fmt: skip


if __name__ == "__main__":
    run_script(main)
