"""The variance of the generator's gradient at (B, K), as in Table 3 of arXiv 2605.21489: 982, 59.9, 30.7.

It is tr Cov of one step's gradient w.r.t. all of the generator's parameters, from independent pairs of steps:
E[|g_a - g_b|^2] / 2, so that two gradients are in memory at a time, whatever their size. A second set of draws on the
samples of g_a gives the draws' part alike; the rest is upstream, what would be left if draws cost nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from carv_3d.core import estimator_names
from carv_3d.core.designs import Design
from carv_3d.core.estimator import CarvEstimator
from carv_3d.core.estimator_names import LAYOUT, estimator_options
from carv_3d.core.seeds import seed_for
from carv_3d.core.variance import gradients, half_square
from carv_3d.distill.loop import Distillation, check_noise
from carv_3d.errors import CarvError
from carv_3d.io.files import write_atomic
from carv_3d.io.tables import csv_text
from carv_3d.stats.bootstrap import MIN_SAMPLES, Interval, interval, picks

WORDS = {word: estimator_names.WORDS[word] for word in LAYOUT}


@dataclass(frozen=True)
class Setting:
    """B samples with K draws each, timesteps uniform; draws independent unless the design says else."""

    B: int
    K: int
    design: Design = field(default_factory=lambda: Design(stratify="none"))

    @property
    def name(self) -> str:
        """As `read_setting` takes it."""
        words = [name for name, word in WORDS.items() if getattr(self.design, word.option) == word.value]
        return "+".join([f"{self.B}x{self.K}", *words])


PAPER = {"8x1": 982.0, "8x16": 59.9, "8x16+strat": 30.7}


def read_setting(text: str) -> Setting:
    """The setting of a name such as "8x16+strat".

    Raises:
        CarvError: a name that cannot be read, or a number of draws that the design cannot lay out.
    """
    size, plus, name = text.partition("+")
    numbers = re.fullmatch(r"(\d+)x(\d+)", size)
    if numbers is None:
        raise CarvError(f"the setting {text!r} cannot be read; write it as 8x16 or 8x16+strat+antithetic")
    B, K = int(numbers[1]), int(numbers[2])
    if B < 1 or K < 1:
        raise CarvError(f"the setting {text!r} has no samples or no draws; both are at least 1")
    options = estimator_options(name, WORDS) if plus else {}
    design = Design(**{"stratify": "none", **options})
    design.check(K)
    return Setting(B, K, design)


def check_settings(settings: Sequence[Setting]) -> None:
    """Raises CarvError for fewer settings than one, or one that is named twice."""
    if not settings or len(set(settings)) < len(settings):
        raise CarvError("the settings are none, or one of them is named twice; name different ones")


@dataclass
class VarianceRow:
    """One setting's figures.

    Attributes:
        variance: Var(g), of a step's gradient.
        upstream: the part of it that more draws do not lower; unbiased, so it may come out below 0.
        reduction: the first setting's variance over this one's.
        seconds: of a step's gradient.
        pairs: how many were measured.
    """

    setting: Setting
    variance: Interval
    upstream: Interval
    reduction: Interval
    seconds: float
    pairs: int


@dataclass
class Samples:
    """What the pairs gave: unbiased samples of the variance and of its inner part, and seconds of one gradient."""

    total: list[float] = field(default_factory=list)
    inner: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class PairBenchmark:
    """Pairs of steps of a distillation as it stands; nothing of it moves on but the meter."""

    def __init__(self, distillation: Distillation, settings: Sequence[Setting], seed: int = 0) -> None:
        """Raises CarvError as `check_settings`, and for more noise than memory holds."""
        check_settings(settings)
        for s in settings:
            check_noise(distillation.teacher, s.B, s.K, f"take a smaller setting than {s.name}")
        self.distillation, self.settings = distillation, list(settings)
        self.samples = [Samples() for _ in settings]
        self.seed = seed
        self.rounds = 0
        T = distillation.teacher.schedule.num_train_timesteps
        plain = distillation.options.estimator(T)
        self._estimators = [
            CarvEstimator(
                distillation.teacher.schedule,
                replace(
                    plain, num_draws=s.K, proposal="uniform", stratify=s.design.stratify, antithetic=s.design.antithetic
                ),
            )
            for s in self.settings
        ]

    def round(self, stopped: Callable[[], bool] = lambda: False) -> bool:
        """One more pair of each setting, interleaved, so that a busy machine slows all alike; False if stopped."""
        table = []
        for number, setting in enumerate(self.settings):
            if stopped():
                return False
            table.append(self._pair(setting, self._estimators[number], f"{setting.name} {self.rounds}"))
        for samples, (total, inner, seconds) in zip(self.samples, table):
            samples.total.append(total)
            samples.inner.append(inner)
            samples.seconds.append(seconds)
        self.rounds += 1
        return True

    def _pair(self, setting: Setting, estimator: CarvEstimator, purpose: str) -> tuple[float, float, float]:
        """(|g_a - g_b|^2 / 2 in the mean over both of g_a's sets of draws, |g_a - g_a'|^2 / 2, seconds of g_b)."""
        streams = {
            name: torch.Generator().manual_seed(seed_for(self.seed, f"variance {purpose} {name}"))
            for name in ("noise", "prompts", "draws")
        }
        first = self._gradients(setting, estimator, streams, 2)
        a, again = next(first), next(first)
        inner = _apart(a, again)
        begin = time.perf_counter()
        b = next(self._gradients(setting, estimator, streams, 1))
        seconds = time.perf_counter() - begin
        return (_apart(a, b) + _apart(again, b)) / 2, inner, seconds

    def _gradients(
        self, setting: Setting, estimator: CarvEstimator, streams: dict[str, torch.Generator], sets: int
    ) -> Iterator[list[Tensor]]:
        """The gradient of a step, from each of several sets of draws on the same samples."""
        distillation = self.distillation
        parameters = list(distillation.generator.parameters())
        z, text = distillation.generate(setting.B, streams)
        cond = (z.detach(), text, distillation.uncond.expand_as(text))
        for left in range(sets, 0, -1):
            estimate = estimator.estimate_residual(z, distillation.matching.residual, cond, streams["draws"])
            loss = distillation.loss(estimate, z)
            yield gradients(loss, parameters, retain_graph=left > 1)

    def rows(self) -> list[VarianceRow]:
        """The figures so far, with 95 % intervals by resampling pairs; CarvError with fewer than two rounds."""
        if self.rounds < 2:
            raise CarvError(f"a variance needs two pairs of each setting at least, and there are {self.rounds}")
        picked = picks(self.rounds)

        def means(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64)[picked].mean(1)

        base, out = means(self.samples[0].total), []
        for setting, s in zip(self.settings, self.samples):
            total = means(s.total)
            variance, upstream, reduction = (
                interval(x, self.rounds) for x in (total, total - means(s.inner), base / total)
            )
            seconds = sum(s.seconds) / len(s.seconds)
            out.append(VarianceRow(setting, variance, upstream, reduction, seconds, self.rounds))
        return out


def variance_table(
    distillation: Distillation,
    settings: Sequence[Setting],
    repeats: int = 20,
    seconds: float = float("inf"),
    seed: int = 0,
    show: Callable[[int], None] = lambda done: None,
    stopped: Callable[[], bool] = lambda: False,
) -> list[VarianceRow]:
    """Each setting's variance from `repeats` pairs of gradients, or as many as `seconds` allow, two at least.

    show: called after each round with how many are done.
    stopped: asked before each pair; then what is done counts, [] where that is too little.
    """
    benchmark, begin = PairBenchmark(distillation, settings, seed), time.perf_counter()
    while benchmark.rounds < repeats and (benchmark.rounds < 2 or time.perf_counter() - begin < seconds):
        if not benchmark.round(stopped):
            return benchmark.rows() if benchmark.rounds >= 2 else []
        show(benchmark.rounds)
    return benchmark.rows()


COLUMNS = (
    "setting", "B", "K", "variance", "variance_low", "variance_high", "upstream", "upstream_low", "upstream_high",
    "reduction", "reduction_low", "reduction_high", "seconds", "pairs", "paper_variance", "paper_reduction",
)  # fmt: skip


def csv_cells(row: VarianceRow) -> dict[str, Any]:
    """A setting's figures by COLUMNS, with the paper's where it has them, else ""."""
    ends = [x for i in (row.variance, row.upstream, row.reduction) for x in (i.value, i.low, i.high)]
    s = row.setting
    return dict(zip(COLUMNS, (s.name, s.B, s.K, *ends, row.seconds, row.pairs, *_paper(s)), strict=True))


def write_csv(path: Path, rows: Sequence[VarianceRow]) -> None:
    """One line a setting."""
    write_atomic(path, csv_text(COLUMNS, (csv_cells(row).values() for row in rows)))


def table_text(rows: Sequence[VarianceRow]) -> list[str]:
    """The same as lines of a table; intervals from `MIN_SAMPLES` pairs on."""
    head = f"{'setting':<24}{'variance':>26}{'upstream':>12}{'reduction':>24}{'pairs':>7}{'s a gradient':>14}"
    lines = [f"{head}{'the paper':>20}"]
    for row in rows:
        variance, reduction = row.variance.text(".4g"), row.reduction.text(".3g")
        absolute = _paper(row.setting)
        paper = f"{absolute[0]} ({absolute[1]}x)" if absolute[0] else "-"
        lines.append(
            f"{row.setting.name:<24}{variance:>26}{row.upstream.value:>12.4g}{reduction:>24}{row.pairs:>7}"
            f"{row.seconds:>14.3g}{paper:>20}"
        )
    if any(row.pairs < MIN_SAMPLES for row in rows):
        lines.append(f"Intervals are shown from {MIN_SAMPLES} pairs on: raise --pairs or --budget.")
    return lines


def _paper(setting: Setting) -> tuple[str, str]:
    value = PAPER.get(setting.name)
    return ("", "") if value is None else (f"{value:g}", f"{PAPER['8x1'] / value:.3g}")


def _apart(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """|a - b|^2 / 2 of two gradients by parameter."""
    return float(half_square(x - y for x, y in zip(a, b)))
