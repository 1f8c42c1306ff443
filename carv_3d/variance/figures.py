"""From blocks to figures with intervals: variance, its parts, ECM and RE; and what the paper has beside them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from carv_3d.core.variance import ecm, re
from carv_3d.stats.bootstrap import Interval, interval, picks
from carv_3d.variance.study import Block, Entry

# arXiv 2605.21489 with Stable Diffusion 2.1 and a NeRF: ECM against (2, 1) uniform at (1, 8); RE at K in {2, 4, 8}
PAPER_ECM = {"uniform": 2.6, "is": 3.0, "strat": 3.0, "is+strat": 3.3}
PAPER_RE = {"is": (1.05, 1.24), "strat": (1.0, 3.0), "is+strat": (1.25, 1.31)}
PAPER_ORACLE = (0.94, 0.97)  # the weight proposal's share of the oracle's reduction


@dataclass
class Row:
    """One entry's figures at one point of a run.

    variance: tr Cov of a step's gradient; s_out2 and v_in are its parts, of a step. seconds: of a step, and phases of
    it. ecm: against the baseline; re: against uniform at the same (R, K), None where that was not measured. bound: the
    ECM that free draws without noise would have at this R. blocks: how many it is of.
    """

    step: int
    entry: Entry
    variance: Interval
    s_out2: float
    v_in: float
    seconds: float
    phases: dict[str, float]
    ecm: Interval
    re: Interval | None
    bound: float
    blocks: int

    @property
    def upstream_share(self) -> float:
        """Of the variance, what more draws cannot take away."""
        return max(self.s_out2, 0.0) / self.variance.value if self.variance.value > 0 else 0.0

    @property
    def precision(self) -> float:
        """Half of the interval of the ECM, relative; NaN where there is none."""
        return (self.ecm.high - self.ecm.low) / 2 / abs(self.ecm.value)

    @property
    def paper_ecm(self) -> float | None:
        """What the paper has for this method at one render of eight draws, or None."""
        name = self.entry.method.name
        return PAPER_ECM.get(name) if (self.entry.R, self.entry.K) == (1, 8) else None

    @property
    def paper_re(self) -> tuple[float, float] | None:
        """The paper's range for this method at this K, or None."""
        return PAPER_RE.get(self.entry.method.name) if self.entry.K in (2, 4, 8) else None


def rows(
    step: int, entries: Sequence[Entry], blocks: Sequence[Block], baseline: Entry, upstream: float = 1.0
) -> list[Row]:
    """The figures of all entries; blocks are resampled together, since entries of one pool were measured on the same
    renders. Seconds are medians over the blocks, and resampled with them: an interval knows of both.

    upstream: what the seconds outside of denoising are multiplied by, for regimes that this machine has not.
    """
    n = len(blocks)
    picked = picks(n)

    def table(values: Callable[[Block], float]) -> Tensor:
        return torch.tensor([values(b) for b in blocks], dtype=torch.float64)

    def resampled(values: Tensor) -> Tensor:
        """(1 + RESAMPLES,) means, the first of the blocks as they are."""
        return values[picked].mean(1)

    def seconds(e: Entry, draws: bool = True) -> Tensor:
        """Of a step, or of its upstream work alone: (1 + RESAMPLES,) medians."""

        def one(b: Block) -> float:
            phases = b.seconds[e.key]
            return upstream * (phases["step"] - phases["denoise"]) + draws * phases["denoise"]

        return table(one)[picked].quantile(0.5, dim=1)

    inside = {e.key: resampled(table(lambda b, e=e: b.inside[e.key])) for e in entries}  # type: ignore[misc]
    outside = {e.pool: resampled(table(lambda b, e=e: b.outside[e.pool])) for e in entries}  # type: ignore[misc]

    def variance(e: Entry) -> Tensor:
        return inside[e.key] + outside[e.pool]

    by_place = {(e.R, e.K): e for e in entries if e.method.name == "uniform"}
    base = variance(baseline), seconds(baseline)
    out = []
    for e in entries:
        mine, rival, cost = variance(e), by_place.get((e.R, e.K)), seconds(e)
        free = float(outside[e.pool][0]) * float(seconds(e, draws=False)[0])
        row = Row(
            step=step,
            entry=e,
            variance=interval(mine, n),
            s_out2=float(outside[e.pool][0]),
            v_in=float(inside[e.key][0]),
            seconds=float(cost[0]),
            phases=phases_of(e, blocks),
            ecm=interval(ecm(*base, mine, cost), n),
            re=None if rival is None else interval(re(variance(rival), mine), n),
            bound=float((base[0] * base[1])[0]) / free if free > 0 else float("inf"),
            blocks=n,
        )
        out.append(row)
    return out


def phases_of(e: Entry, blocks: Sequence[Block]) -> dict[str, float]:
    """Median seconds of a step by phase; all but "step" add up to about that."""
    mine = [b.seconds[e.key] for b in blocks]
    return {name: statistics.median(one[name] for one in mine) for name in mine[0]}


def tight(found: Sequence[Row], tolerance: float) -> bool:
    """Whether every ECM has an interval within the tolerance."""
    return all(0 <= row.precision <= tolerance for row in found)


@dataclass
class Timesteps:
    """t: the middles of `bins` parts of the range. norm: RMS of |J^T f| in each. weight, oracle: the proposals' q,
    normalised over the bins. share: of the oracle's reduction of E|(p/q) J^T f|^2, what the weight proposal reaches."""

    t: list[float]
    norm: list[float]
    weight: list[float]
    oracle: list[float]
    share: float


def timesteps(blocks: Sequence[Block], weights: Tensor, low: int, high: int, bins: int = 12) -> Timesteps:
    """By timestep, from the single draws of all blocks; weights: (T,) w(t)."""
    width = (high - low + 1) / bins
    found: list[list[float]] = [[] for _ in range(bins)]
    for t, value in (pair for b in blocks for pair in b.norms):
        found[min(bins - 1, int((t - low) / width))].append(value)
    kept = [i for i, values in enumerate(found) if values]
    second = torch.tensor([statistics.fmean(found[i]) for i in kept], dtype=torch.float64)
    edges = [low + i * width for i in range(bins + 1)]
    w = torch.stack([weights[int(edges[i]) : max(int(edges[i + 1]), int(edges[i]) + 1)].double().mean() for i in kept])
    q, best = w.cpu() / w.sum().cpu(), second.sqrt() / second.sqrt().sum()
    p = torch.full_like(q, 1 / len(kept))
    uniform, weighted = float((p * second).sum()), float((p**2 / q * second).sum())
    oracle = float((p**2 / best * second).sum())
    share = (uniform - weighted) / (uniform - oracle) if uniform > oracle else 1.0
    middles = [(edges[i] + edges[i + 1]) / 2 for i in kept]
    return Timesteps(middles, second.sqrt().tolist(), q.tolist(), best.tolist(), share)
