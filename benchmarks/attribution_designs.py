"""The ECM of designs of the draws in attribution, by evaluations per item, all from one set of draws.

carv-tiny and images of its own training. Each item has twice independently a pair of draws (eps and -eps) from each of
S strata. A draw, or a pair, from a coarse stratum is a draw from any of the fine ones in it. So the same gradients give
every design's variance at every number of evaluations without bias (`core.variance.strata_variance`), where
`attribution_ecm.py` makes them anew for each. At equal evaluations cost is equal. The ECM against independent uniform
draws is then the quotient of the mean variances, with its bootstrap interval over items.

The last row is by what factor the variance falls where items share the same draws by their own noise instead of
equally: mean(s^2) / mean(s)^2, s the noise of an item's single pair.

    ./install.sh python benchmarks/attribution_designs.py [--items 64] [--strata 64] [--parameters text]
        [--balance true] [--out docs/results/attribution-designs.csv]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from bench import run_script, script_parser, show_table
from torch import Tensor

from carv_3d.attribution import FeatureMaker, FeatureOptions, GradientModel
from carv_3d.attribution.choosing import contributions
from carv_3d.attribution.encoded import embed, encode_images
from carv_3d.attribution.parameter_names import PARAMETERS
from carv_3d.attribution.shipped import DrawnImages
from carv_3d.core.variance import strata_variance
from carv_3d.stats.bootstrap import ratio_of_means
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher

KS = (2, 4, 8, 16, 32, 64, 128)
HEAD = ["design", "evaluations", "ECM", "low", "high", "items", "parameters"]
DESIGNS = {  # title -> strata of K evaluations, how many share a timestep
    "antithetic pairs": (lambda K: 1, 2),
    "stratified": (lambda K: K, 1),
    "stratified + antithetic pairs": (lambda K: K // 2, 2),
}


def variances(x: Tensor, ks: tuple[int, ...] = KS) -> dict[tuple[str, int], float]:
    """(design, K) -> an item's variance, of (2, S, 2, dim) as of `contributions`."""
    S = x.shape[1]
    units = {1: [x[:, :, 0], x[:, :, 1]], 2: [x.mean(2)]}

    def variance(size: int, strata: int) -> float:
        return sum(strata_variance(part, strata) for part in units[size]) / len(units[size])

    out = {("uniform", K): variance(1, 1) / K for K in ks}
    for title, (strata, size) in DESIGNS.items():
        for K in ks:
            if strata(K) > 1 and S % strata(K) == 0:
                out[title, K] = variance(size, strata(K))
            elif strata(K) == 1:
                out[title, K] = variance(size, 1) * size / K
    return out


def measure(o: argparse.Namespace) -> list[list[Any]]:
    """The rows of the table."""
    torch.set_num_threads(o.threads)
    teacher = StableDiffusionTeacher.load("carv-tiny")
    options = FeatureOptions(dim=o.dim, parameters=o.parameters, balance=o.balance == "true")
    maker = FeatureMaker(GradientModel.from_teacher(teacher), options)
    images = DrawnImages(range(0, 3 * o.items, 3))  # neighbors in the training set are colorings of one view
    by_item, begin = [], time.perf_counter()
    for i in range(o.items):
        z, text = encode_images([images.image(i)], teacher)[0], embed(images.caption(i), teacher)
        by_item.append(variances(contributions(maker, images.key(i), z, text, o.strata, "designs")))
        if i % 8 == 7:
            print(f"{i + 1} of {o.items}, {time.perf_counter() - begin:.0f} s", flush=True)
    return table(by_item, o.parameters if o.balance == "true" else f"{o.parameters}, unscaled")


def table(by_item: list[dict[tuple[str, int], float]], parameters: str) -> list[list[Any]]:
    """The rows, of each item's variances."""
    values = {key: torch.tensor([item[key] for item in by_item], dtype=torch.float64) for key in by_item[0]}
    rows: list[list[Any]] = []
    for (title, K), method in values.items():
        if title != "uniform":
            figure = ratio_of_means(values["uniform", K], method)
            rows.append([title, K, *(f"{x:.3f}" for x in (figure.value, figure.low, figure.high))])
    noise = values["antithetic pairs", 2].clamp_min(0).sqrt()
    shared = float(noise.square().mean() / noise.mean().square())
    rows.append(["shared by noise instead of equally", "", f"{shared:.3f}", "", ""])
    return [[*row, len(by_item), parameters] for row in rows]


def main() -> None:
    """The table."""
    parser = script_parser(__doc__, items=64, strata=64, dim=2048, threads=1)
    parser.add_argument("--parameters", choices=PARAMETERS, default="text")
    parser.add_argument("--balance", choices=["true", "false"], default="true")
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    show_table(HEAD, measure(o), o.out)


if __name__ == "__main__":
    run_script(main)
