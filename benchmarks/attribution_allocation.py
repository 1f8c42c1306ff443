"""What sharing draws out by noise is worth: `allocation=noise` of `carv attribute` against equal draws.

carv-tiny and images of its own training. Each item has --repeats gradients of K draws, and as many where a pilot of 4
draws measures its noise and the other draws are shared out by it, at the same number of draws in all. The variance of
an item is tr Cov over its repeats. The ECM is the quotient of the mean variances, with a bootstrap interval over items.

    ./install.sh python benchmarks/attribution_allocation.py [--items 192] [--repeats 2] [--draws 16]
        [--out docs/results/attribution-allocation.csv]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from bench import run_script, script_parser, show_table, whole_numbers
from torch import Tensor

from carv_3d.attribution import FeatureMaker, GradientModel
from carv_3d.attribution.by_noise import NoiseMaker
from carv_3d.attribution.encoded import embed, encode_images
from carv_3d.attribution.request import PILOT_DRAWS, AttributeOptions
from carv_3d.attribution.shipped import DrawnImages
from carv_3d.core.variance import total_variance
from carv_3d.stats.bootstrap import ratio_of_means
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher

HEAD = ["draws", "ECM", "low", "high", "fewest draws", "most", "items", "repeats"]


class Items:
    """Every third training image, encoded; a repeat has keys, and so draws, of its own."""

    def __init__(self, count: int, teacher: StableDiffusionTeacher) -> None:
        images = DrawnImages(range(0, 3 * count, 3))  # neighbors in the training set are colorings of one view
        self.z = torch.cat([encode_images([images.image(i)], teacher) for i in range(count)])
        self.texts = [embed(images.caption(i), teacher) for i in range(count)]
        self.repeat = 0

    def __len__(self) -> int:
        return len(self.z)

    def key(self, index: int) -> str:
        return f"{index} {self.repeat}"

    def latents(self, index: int) -> Tensor:
        return self.z[index]

    def condition(self, index: int) -> Tensor:
        return self.texts[index]

    def fingerprint(self) -> str:
        return ""


def rows(maker: FeatureMaker, items: Items) -> Tensor:
    """(N, groups, dim)."""
    made: dict[int, Tensor] = {}
    for batch in maker.batches(list(range(len(items)))):
        made |= dict(zip(batch, maker.item_rows(items, batch).cpu()))
    return torch.stack([made[i] for i in range(len(items))])


def measure(o: argparse.Namespace) -> list[list[Any]]:
    """The rows of the table."""
    torch.set_num_threads(o.threads)
    teacher = StableDiffusionTeacher.load("carv-tiny")
    items, begin, table = Items(o.items, teacher), time.perf_counter(), []
    model = GradientModel.from_teacher(teacher)
    for K in o.draws:
        pilot, options = (
            AttributeOptions(query="a red mug", method="relatif", num_draws=n).features for n in (PILOT_DRAWS, K)
        )
        first = FeatureMaker(model, pilot)
        equal = FeatureMaker(model, options, projection=first.projection)
        equal.share_layers(first)
        made: dict[str, list[Tensor]] = {"equal": [], "noise": []}
        counts: list[int] = []
        for items.repeat in range(o.repeats):
            made["equal"].append(rows(equal, items).mean(1))
            by_noise = NoiseMaker(options, first, rows(first, items))
            made["noise"].append(rows(by_noise, items).mean(1))
            counts += by_noise.rest
            print(f"K = {K}, repeat {items.repeat + 1}: {time.perf_counter() - begin:.0f} s", flush=True)
        equally, shared = (per_item(torch.stack(each)) for each in made.values())
        figure = ratio_of_means(equally, shared)
        ends = [PILOT_DRAWS + min(counts), PILOT_DRAWS + max(counts)]
        numbers = [f"{x:.3f}" for x in (figure.value, figure.low, figure.high)]
        table.append([K, *numbers, *ends, o.items, o.repeats])
    return table


def per_item(repeats: Tensor) -> Tensor:
    """(N,) tr Cov over the repeats of (repeats, N, dim)."""
    return torch.tensor([total_variance(repeats[:, i]) for i in range(repeats.shape[1])], dtype=torch.float64)


def main() -> None:
    """The table."""
    parser = script_parser(__doc__, items=192, repeats=2, threads=1)
    parser.add_argument("--draws", type=whole_numbers, default=(16,))
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    show_table(HEAD, measure(o), o.out)


if __name__ == "__main__":
    run_script(main)
