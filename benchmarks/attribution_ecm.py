"""The paper's Table 4: the ECM of designs of the draws in attribution, by evaluations per item.

carv-tiny and images of its own training. For each item, repeated features of K evaluations; the variance of a design
is the mean over items of tr Cov of the (projected) gradient. At equal evaluations cost is equal, so the ECM against
independent uniform draws is the quotient of the variances, with its bootstrap interval over items. Next to it the rank
correlation over items between cosine scores at K evaluations and those of --truth evaluations, the mean over repeats
and queries (queries have the truth's draws).

    ./install.sh python benchmarks/attribution_ecm.py [--items 16] [--repeats 6] [--truth 512] [--model FOLDER]
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from attribution_metrics import spearman
from bench import joined, script_parser
from torch import Tensor

from carv_3d.attribution import FeatureMaker, FeatureOptions, GradientModel, GroupedDrawOptions
from carv_3d.attribution.encoded import EncodedImages
from carv_3d.attribution.images import TinyImages
from carv_3d.attribution.training_rows import cache_folder
from carv_3d.core.proposals import TimestepProposal, make_proposal
from carv_3d.core.variance import total_variance
from carv_3d.stats.bootstrap import ratio_of_means
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher

KS = (4, 8, 16, 32, 64)
BINS = 20  # of the pilot
DESIGNS = {  # title -> stratify, antithetic, importance sampling
    "uniform": ("none", False, False),
    "importance": ("none", False, True),
    "antithetic": ("none", True, False),
    "stratified": ("render", False, False),
    "stratified + importance": ("render", False, True),
    "stratified + antithetic": ("render", True, False),
}


def options(draws: GroupedDrawOptions, o: argparse.Namespace) -> FeatureOptions:
    return FeatureOptions(draws=draws, output=o.loss, dim=o.dim)


def pilot(model: GradientModel, items: EncodedImages, index: range, o: argparse.Namespace) -> TimestepProposal:
    """q proportional to the root mean square of the gradient, by bins of timesteps, on items that are not measured,
    mixed with a tenth of the uniform one."""
    steps = model.schedule.num_train_timesteps
    table = torch.zeros(steps)
    edges = torch.linspace(0, steps, BINS + 1).long().tolist()
    projection = None
    for low, high in itertools.pairwise(edges):
        draws = GroupedDrawOptions(
            num_draws=1, groups=1, stratify="none", antithetic=False, min_step=low, max_step=high - 1
        )
        maker = FeatureMaker(model, options(draws, o), f"pilot-{low}", projection=projection)
        projection = maker.projection
        squares = [
            float(maker.feature(items.key(i), items.latents(i), items.condition(i)).square().sum()) for i in index
        ]
        table[low:high] = (sum(squares) / len(squares)) ** 0.5
    return make_proposal("weight", model.schedule, 0.9 * table / table.mean() + 0.1)


def repeated(
    make: Callable[[int], FeatureMaker], items: EncodedImages, index: range, repeats: int
) -> dict[int, Tensor]:
    """(repeats, N, dim) for each K, of a design whose draws depend on each other: made anew for each K."""
    out = {}
    for K in KS:
        maker = make(K)
        out[K] = torch.stack(
            [torch.stack([_feature(maker, items, i, r).mean(0) for i in index]) for r in range(repeats)]
        )
    return out


def shared(
    maker: FeatureMaker, items: EncodedImages, index: range, repeats: int
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """The same of independent draws, where K draws are the first K of the most, and the variance per item (N,) at
    each K: that of all groups of KS[0], which falls as 1/K."""
    groups = torch.stack([torch.stack([_feature(maker, items, i, r) for i in index]) for r in range(repeats)])
    single = _per_item(groups.transpose(1, 2).flatten(0, 1))
    return {K: groups[:, :, : K // KS[0]].mean(2) for K in KS}, {K: single * KS[0] / K for K in KS}


def _feature(maker: FeatureMaker, items: EncodedImages, i: int, repeat: int) -> Tensor:
    return maker.feature(f"{items.key(i)} {repeat}", items.latents(i), items.condition(i))


@dataclass
class Setting:
    """A model, encoded items, the indices that are measured and asked about, and the importance proposal."""

    model: GradientModel
    items: EncodedImages
    index: range
    queries: range
    proposal: TimestepProposal

    @classmethod
    def load(cls, o: argparse.Namespace) -> Setting:
        """Of the options; images of the same view are left out."""
        teacher = StableDiffusionTeacher.load(o.model)
        model = GradientModel.from_teacher(teacher)
        count = o.items + o.queries + o.pilot
        folder = cache_folder() / "attribution" / "benchmark"
        # neighbors in the training set are colorings of one view: take every third image
        images = TinyImages(folder / f"images-{3 * count}", 3 * count)
        items = EncodedImages(images, teacher, folder / f"latents-{3 * count}-{Path(o.model).name}")
        items.encode()
        index, queries = range(0, 3 * o.items, 3), range(3 * o.items, 3 * (o.items + o.queries), 3)
        return cls(model, items, index, queries, pilot(model, items, range(queries.stop, 3 * count, 3), o))


class Ranks:
    """Rank correlations of cosine scores with those of --truth evaluations."""

    def __init__(self, setting: Setting, o: argparse.Namespace) -> None:
        draws = GroupedDrawOptions(num_draws=o.truth, groups=o.truth // 16)
        many = FeatureMaker(setting.model, options(draws, o), "truth")
        self.projection, items = many.projection, setting.items
        self.truth, self.asked = (
            torch.stack([many.feature(items.key(i), items.latents(i), items.condition(i)).mean(0) for i in index])
            for index in (setting.index, setting.queries)
        )

    def cosines(self, f: Tensor) -> Tensor:
        """(Q, N) of features (N, dim)."""
        return F.normalize(self.asked, dim=1) @ F.normalize(f, dim=1).T

    def mean(self, repeats: Tensor) -> float:
        """Over queries and the repeats (repeats, N, dim)."""
        return float(torch.stack([spearman(self.cosines(x), self.cosines(self.truth)) for x in repeats]).mean())


def measure(
    title: str, setting: Setting, projection: Any, o: argparse.Namespace
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Features (repeats, N, dim) and the variance of each item (N,) of a design, at each K."""
    stratify, antithetic, importance = DESIGNS[title]

    def make(K: int, groups: int = 1) -> FeatureMaker:
        draws = GroupedDrawOptions(num_draws=K, groups=groups, stratify=stratify, antithetic=antithetic)
        proposal = setting.proposal if importance else None
        return FeatureMaker(setting.model, options(draws, o), f"{title} {K}", proposal, projection=projection)

    if stratify == "none":
        return shared(make(KS[-1], groups=KS[-1] // KS[0]), setting.items, setting.index, o.repeats)
    by_k = repeated(make, setting.items, setting.index, o.repeats)
    return by_k, {K: _per_item(f) for K, f in by_k.items()}


def main() -> None:
    """Both tables."""
    parser = script_parser(__doc__, items=16, repeats=6, truth=512, queries=4, pilot=8, dim=2048, threads=2)
    parser.add_argument("--model", default="carv-tiny")
    parser.add_argument("--loss", default="loss")
    parser.add_argument("--designs", type=joined(DESIGNS), default=list(DESIGNS))
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    begin = time.perf_counter()
    setting = Setting.load(o)
    ranks = Ranks(setting, o)
    variances: dict[str, dict[int, Tensor]] = {}
    correlations: dict[str, dict[int, float]] = {}
    for title in o.designs:
        by_k, variances[title] = measure(title, setting, ranks.projection, o)
        correlations[title] = {K: ranks.mean(f) for K, f in by_k.items()}
        print(f"{title}: {time.perf_counter() - begin:.0f} s", flush=True)
    print(f"\n{o.items} items, {o.repeats} repeats, {setting.model.num_parameters:,} parameters projected to {o.dim}, "
          f"{o.model}, {o.loss}\n")  # fmt: skip
    head = "| evaluations per item | " + " | ".join(map(str, KS)) + " |\n|---" + "|---" * len(KS) + "|"
    print("ECM against uniform (95 %)\n\n" + head)
    for title in o.designs[1:]:
        cells = [ratio_of_means(variances[o.designs[0]][K], variances[title][K]).text() for K in KS]
        print(f"| {title} | " + " | ".join(cells) + " |")
    print("\nSpearman correlation with the scores of many draws\n\n" + head)
    for title in o.designs:
        print(f"| {title} | " + " | ".join(f"{correlations[title][K]:.2f}" for K in KS) + " |")


def _per_item(f: Tensor) -> Tensor:
    """(N,) tr Cov over repeats of (repeats, N, dim)."""
    return torch.tensor([total_variance(f[:, i]) for i in range(f.shape[1])], dtype=torch.float64)


if __name__ == "__main__":
    main()
