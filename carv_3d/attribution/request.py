"""What `carv attribute` is asked for, without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from carv_3d.attribution.parameter_names import LayerOptions
from carv_3d.config.request import ModelOptions, OutOptions, TextOptions
from carv_3d.core.options import DrawOptions, EngineOptions, ProjectionOptions, check_draws, option
from carv_3d.errors import CarvError
from carv_3d.io.files import expanded
from carv_3d.tiny.knowledge import model_knowledge

if TYPE_CHECKING:
    from carv_3d.attribution.options import FeatureOptions


@dataclass(frozen=True)
class ScoreMethod:
    """How gradients are compared.

    Attributes:
        output: of the model, that the gradients are of; see `losses.LOSSES`.
        words: what the page says.
        kernel: whether gradients are compared under TRAK's inverse kernel.
        relative: whether scores are divided by the roots of those for themselves (l-RelatIF, arXiv 2003.11630).
        ridge: of the kernel, relative to its mean eigenvalue; by likelihood if None.
    """

    output: str
    words: str
    kernel: bool = True
    relative: bool = False
    ridge: float | None = None


NORM = "mean-squared-l2-norm"  # of D-TRAK, arXiv 2311.00500
METHODS = {
    "cosine": ScoreMethod("loss", "the cosine between gradients of the loss", kernel=False),
    "relatif": ScoreMethod(
        "loss",
        "RelatIF: the cosine between gradients of the loss, in the metric of TRAK's inverse kernel",
        relative=True,
    ),
    "trak": ScoreMethod("loss", "TRAK: gradients of the loss under the inverse of their regularized kernel"),
    "d-trak": ScoreMethod(NORM, "D-TRAK: as TRAK, with gradients of the output's squared norm"),
    "d-trak-relatif": ScoreMethod(
        NORM, "D-TRAK over the roots of the scores for themselves, as in RelatIF", relative=True, ridge=10.0
    ),
}
MAX_KERNEL = 2**14  # 2 GiB in float64
GROUPS, QUERY_GROUPS = 2, 8  # independent groups of the draws of a training image, and of a query's
PILOT_DRAWS = 4  # of each training image, by which allocation=noise measures its noise
ROUND_DRAWS, ROUND_GROUPS = 16, 2  # of a query's image, where rounds continue until the ranking is stable


@dataclass(frozen=True, kw_only=True)
class AttributeOptions(
    ProjectionOptions,
    DrawOptions,
    ModelOptions,
    TextOptions,
    OutOptions,
    EngineOptions,
    LayerOptions,
    defaults={"num_draws": 8, "antithetic": True, "parameters": "text", "balance": True},
    kinds={"dim": int, "stratify": Literal["none", "render"]},
    helps={
        "model": "A folder or a hub id; else the run's, or carv-tiny.",
        "out": "The folder; unless given, outputs/attribution-QUERY.",
        "prompt": "The text that an image was made from.",
        "num_draws": "K, draws of (t, eps) per training image; auto: chosen by the noise and seconds of a few.",
    },
    renamed={"draws": "num_draws", "data": "training_images"},
):
    """What `carv attribute` is asked. Raises CarvError, naming the option, for a value that cannot be meant."""

    query: str
    training_images: str = option("tiny", "tiny (carv-tiny's), a folder, or FILE.tar.")
    items: int | None = option(
        None,
        "How many of them; else tiny's with gradients, all of others.",
        least=1,
        most=10**8,
    )
    allocation: Literal["equal", "noise"] = option(
        "equal", "equal: K draws of each training image; noise: K on average, more where its own noise is larger."
    )
    query_draws: int | Literal["auto"] = option(
        "auto",
        "Draws per image of the query; auto: until they make less than a tenth of the scores' error variance.",
        least=1,
        most=2**14,
    )
    views: int = option(4, "Images that stand for a prompt or an asset.", least=1, most=10_000)
    method: str = option("d-trak-relatif", "How gradients are compared, see docs/results.", choices=METHODS)
    resize: bool = option(False, "Cut and scale images of another size.")
    lora: tuple[str, ...] = option((), "Gradients of adapters alone: fresh, or FILE:SCALE.")
    fresh_rank: int = option(16, "Rank of fresh adapters.", least=1, most=1024)
    store: Path | None = option(None, "Where latents and features are kept for the next query.")
    shard: str = option("", "I/N: make this share of the gradients and stop.")

    merge: tuple[str, ...] = option((), "Stores of other machines' shares, to be taken over.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard and self.engine == "ray":
            raise CarvError("--shard is for processes that are started by hand; leave it out with --engine ray.")
        if METHODS[self.method].kernel and (self.dim or 0) > MAX_KERNEL:
            raise CarvError(
                f"dim is {self.dim}; with {self.method} it must be at most {MAX_KERNEL}: its kernel has dim² numbers."
            )
        unit = QUERY_GROUPS * (2 if self.antithetic else 1)
        if self.query_draws != "auto" and self.query_draws % unit:
            groups = f"{QUERY_GROUPS} groups{' of pairs' if self.antithetic else ''}"
            raise CarvError(f"query_draws is {self.query_draws}; it must be a multiple of {unit} ({groups}).")
        if self.shard and not re.fullmatch(r"\d+/0*[1-9]\d*", self.shard):
            raise CarvError(f"shard is {self.shard!r}; it must be I/N, such as 0/2 for the first of two.")
        if not 0 <= self.share[0] < self.share[1]:
            raise CarvError(f"shard is {self.shard!r}; shares count from 0, so the last is {self.share[1] - 1}.")
        for place in self.merge:
            if self.store is not None and expanded(place).resolve() == expanded(self.store).resolve():
                raise CarvError(f"--merge names {place}, which is --store itself; name the stores of other machines.")
        if self.model is not None:
            check_data(self.training_images, self.model)

    def _check_layout(self) -> None:
        check_draws(self.K, self.antithetic, GROUPS)
        if self.allocation == "noise" and self.least_draws > self.K:
            raise CarvError(
                f"num_draws is {self.num_draws}; with allocation=noise it must be at least {self.least_draws}: "
                f"{PILOT_DRAWS} draws measure an image's noise, and the others are shared out."
            )

    @property
    def least_draws(self) -> int:
        """The smallest K: with allocation=noise the pilot's, an image's least besides, and as many more."""
        unit = GROUPS * (2 if self.antithetic else 1)
        return PILOT_DRAWS + 2 * unit if self.allocation == "noise" else unit

    @property
    def share(self) -> tuple[int, int]:
        """(first, count): of `count` shares, numbered from 0, this process does `first`."""
        first, _, count = (self.shard or "0/1").partition("/")
        return int(first), int(count)

    @property
    def features(self) -> FeatureOptions:
        """Of the training images."""
        return self._features(self.K, GROUPS)

    @property
    def query_features(self) -> FeatureOptions:
        """Of the query, or of a round of it; its draws fall into groups that give its standard error."""
        if self.query_draws == "auto":
            return self._features(ROUND_DRAWS, ROUND_GROUPS)
        return self._features(self.query_draws, QUERY_GROUPS)

    def _features(self, num_draws: int, groups: int) -> FeatureOptions:
        from carv_3d.attribution.options import FeatureOptions, GroupedDrawOptions

        draws = GroupedDrawOptions(
            num_draws=num_draws, groups=groups, stratify=self.stratify, antithetic=self.antithetic
        )
        output = METHODS[self.method].output
        which = {"parameters": self.parameters, "balance": self.balance}
        return FeatureOptions(draws=draws, output=output, dim=self.dim, seed=self.seed, **which)  # type: ignore[arg-type]


def check_data(data: str, model: str) -> None:
    """Raises CarvError where the images of carv-tiny cannot be the model's; a local folder may hold one like it."""
    if data == "tiny" and not model_knowledge(model).training_data and not expanded(model).exists():
        raise CarvError(f"the images of carv-tiny did not train {model}: name its own with --training-images FOLDER.")
