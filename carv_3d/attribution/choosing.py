"""`num_draws: auto` of `carv attribute`: K from the noise and the seconds of a few of the training images.

As the guidance's (`core.auto_draws`), K is the one of a grid with the least (s_out^2 + V_in(K)) · seconds(K). The
upstream sample is an image here. So s_out^2 is the variance between images' exact gradients, V_in(K) that of an image's
estimate, and seconds(K) those of reading and encoding an image and of its K draws. At that K, what is averaged over
images (the kernel, a mean) gains most by a second, whether it goes into images or into draws.

Two independent gradients from each of STRATA strata show all of it without bias (`core.variance`). The draws are those
of a role of their own, so that no row depends on them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from carv_3d.attribution.encoded import embed, encode_images
from carv_3d.attribution.features import FeatureMaker, item_draws
from carv_3d.attribution.images import TrainingImages
from carv_3d.attribution.options import GroupedDrawOptions
from carv_3d.attribution.store import waiting_for
from carv_3d.core.allocation import Measurement, best_measured
from carv_3d.core.estimator import Draws
from carv_3d.core.variance import cross_covariance, strata_variance
from carv_3d.errors import CarvError
from carv_3d.io.files import write_atomic
from carv_3d.io.structured import read_json

STRATA = 8  # of each of the two independent gradients
MEASURED = 12  # images
GRID = (2, 4, 8, 16, 32)  # K that may be chosen, in as far as they divide into groups of pairs


@dataclass(frozen=True)
class Choice:
    """K, and what it was chosen from.

    Attributes:
        num_draws: K.
        share: of the variance with K draws that lies between images.
        image_seconds: of reading and encoding one.
        draw_seconds: of a draw.
    """

    num_draws: int
    share: float
    image_seconds: float
    draw_seconds: float

    def words(self) -> str:
        """A sentence."""
        return (
            f"num_draws=auto: {self.num_draws} draws of an image. With them {self.share:.0%} of the variance is between"
            f" images; an image takes {1e3 * self.image_seconds:.0f} ms and a draw {1e3 * self.draw_seconds:.0f} ms."
        )


class ImageVariances:
    """The two sources of the variance of an image's gradient."""

    def __init__(self, contributions: Sequence[Tensor], draws: GroupedDrawOptions) -> None:
        """contributions: (2, S, dim) of each of N >= 2 images. draws: how an image's are laid out."""
        self._draws = draws
        means = torch.stack([x.double().mean(1) for x in contributions])
        self.outer = max(0.0, cross_covariance(means[:, 0], means[:, 1]))  # s_out^2
        S = contributions[0].shape[1]
        levels = [k for k in range(1, S + 1) if S % k == 0] if draws.stratify != "none" else [1]
        self._levels = {k: sum(strata_variance(x, k) for x in contributions) / len(contributions) for k in levels}

    def inner(self, K: int) -> float:
        """V_in(K), of strata in each group. Beyond the finest strata it falls as 1/K; strata do at least as well."""
        k = K // (self._draws.groups * self._draws.design.group_size)  # strata of a group
        level = max(n for n in self._levels if n <= k)
        return max(0.0, self._levels[level]) * level / k / self._draws.groups


def best_draws(
    variances: ImageVariances, draws: GroupedDrawOptions, image_seconds: float, draw_seconds: float, least: int
) -> Choice:
    """The K of GRID with the least variance times seconds, of those from `least` that divide into groups."""
    unit = draws.groups * draws.design.group_size
    grid = [K for K in GRID if K % unit == 0 and least <= K]
    best = best_measured(
        Measurement(1, K, variances.outer + variances.inner(K), image_seconds + K * draw_seconds) for K in grid
    )
    share = variances.outer / best.variance if best.variance > 0 else 0.0
    return Choice(best.draws, share, image_seconds, draw_seconds)


def contributions(
    maker: FeatureMaker, key: str, z: Tensor, condition: Tensor | None, strata: int, role: str = "auto"
) -> Tensor:
    """Gradients of an item, twice independently from each of `strata` strata.

    Args:
        maker: whose options say whether draws come in strata and in pairs.
        key: names the item.
        z: (C, h, w).
        condition: (L, D) or None.
        strata: S.
        role: keys the draws.

    Returns:
        (2, S, group size, dim): those of both of a pair, or of a single draw.

    Raises:
        CarvError: a gradient that is not finite.
    """
    o, size = maker.options, maker.options.draws.design.group_size
    layout = replace(o.draws, num_draws=size * strata, groups=1)
    singles = []
    for repeat in range(2):
        drawn = item_draws(f"{key} {repeat}", role, layout, maker.proposal, tuple(z.shape), o.seed)[0]
        for k in range(size * strata):
            weights = None if drawn.weights is None else drawn.weights[:, k : k + 1]
            singles.append(Draws(drawn.t[:, k : k + 1], drawn.eps[:, k : k + 1], weights, 1))
    return maker.from_draws([key], [z], [condition], [singles])[0].view(2, strata, size, -1)


def choose_draws(maker: FeatureMaker, images: TrainingImages, teacher: Any, least: int) -> Choice:
    """K for these images, from MEASURED of them (or all).

    Args:
        maker: of their gradients; its own number of draws is of no account.
        images: those that gradients are made of.
        teacher: encodes them.
        least: the smallest K that may be chosen.

    Raises:
        CarvError: fewer than two images, or a gradient that is not finite.
    """
    if len(images) < 2:
        raise CarvError("num_draws=auto compares images, and there is one alone: give num_draws a number.")
    some = sorted({round(i * (len(images) - 1) / (MEASURED - 1)) for i in range(MEASURED)})
    image_seconds, draw_seconds, parts = [], [], []
    for i in some:
        begin = time.perf_counter()
        z, text = encode_images([images.image(i)], teacher)[0], embed(images.caption(i), teacher)
        encoded = time.perf_counter()
        parts.append(contributions(maker, images.key(i), z, text, STRATA).mean(2).cpu())
        image_seconds.append(encoded - begin)
        draw_seconds.append((time.perf_counter() - encoded) / (2 * STRATA * maker.options.draws.design.group_size))
    variances = ImageVariances(parts, maker.options.draws)
    return best_draws(variances, maker.options.draws, median(image_seconds), median(draw_seconds), least)


def kept_choice(path: Path, choose: Callable[[], Choice]) -> Choice:
    """The choice that a file holds, else a new one, which is kept there: seconds vary, and rows of one K are needed."""
    with waiting_for(path.parent):
        if path.exists():
            fix = f"delete {path}, and the draws are chosen again"
            stored = read_json(path, fix)
            try:
                return Choice(**stored)
            except TypeError as error:
                raise CarvError(f"{path} holds no choice of draws; {fix}") from error
        choice = choose()
        write_atomic(path, json.dumps(asdict(choice)))
        return choice
