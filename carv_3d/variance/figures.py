"""From batches to figures with intervals: variance, its parts, ECM and RE; and the paper's figures for the same."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from carv_3d.core.variance import ecm, re
from carv_3d.stats.bootstrap import Interval, interval, picks
from carv_3d.variance.benchmark import Batch
from carv_3d.variance.methods import BASELINE, Setting

# arXiv 2605.21489 with Stable Diffusion 2.1 and a NeRF: ECM against (2, 1) uniform at (1, 8); RE at K in {2, 4, 8}
PAPER_ECM = {"uniform": 2.6, "is": 3.0, "strat": 3.0, "is+strat": 3.3}
PAPER_RE = {"is": (1.05, 1.24), "strat": (1.0, 3.0), "is+strat": (1.25, 1.31)}
PAPER_ORACLE = (0.94, 0.97)  # the weight proposal's share of the oracle's reduction


@dataclass
class Row:
    """One setting's figures at one step of a run.

    Attributes:
        variance: Var(g) of a step, tr Cov of its gradient.
        s_out2: its upstream part.
        v_in: its part of the draws.
        seconds: of a step, median over batches.
        phases: the same by phase; all but "step" add up to about that.
        ecm: against the baseline.
        re: against uniform draws at the same (R, K), None where they were not measured.
        bound: the ECM that free draws without noise would have at this R.
        batches: how many were measured.
    """

    step: int
    setting: Setting
    variance: Interval
    s_out2: float
    v_in: float
    seconds: float
    phases: dict[str, float]
    ecm: Interval
    re: Interval | None
    bound: float
    batches: int

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
        s = self.setting
        return PAPER_ECM.get(s.method.name) if (s.R, s.K) == (1, 8) else None

    @property
    def paper_re(self) -> tuple[float, float] | None:
        """The paper's range for this method at this K, or None."""
        return PAPER_RE.get(self.setting.method.name) if self.setting.K in (2, 4, 8) else None


def rows(
    step: int,
    settings: Sequence[Setting],
    batches: Sequence[Batch],
    baseline: Setting = BASELINE,
    upstream: float = 1.0,
) -> list[Row]:
    """The figures of all settings.

    All are resampled alike, since they were measured on the same renders. An interval covers seconds as well: they
    are medians over the batches that are drawn. `upstream` is what the seconds outside of denoising are multiplied by,
    for regimes that this machine has not.
    """
    n = len(batches)
    picked = picks(n)

    def resampled(value: Callable[[Batch], float]) -> Tensor:
        """(1 + RESAMPLES, n), see `picks`."""
        return torch.tensor([value(b) for b in batches], dtype=torch.float64)[picked]

    def seconds(s: Setting, draws: bool = True) -> Tensor:
        """(1 + RESAMPLES,) of a step, or of its upstream work alone."""

        def batch_seconds(b: Batch) -> float:
            phases = b.seconds[s.key]
            return upstream * (phases["step"] - phases["denoise"]) + draws * phases["denoise"]

        return resampled(batch_seconds).quantile(0.5, dim=1)

    v_in = {s.key: resampled(lambda b, s=s: b.v_in[s.key]).mean(1) for s in settings}  # type: ignore[misc]
    s_out2 = {s.upstream: resampled(lambda b, s=s: b.s_out2[s.upstream]).mean(1) for s in settings}  # type: ignore[misc]
    variance = {s.key: v_in[s.key] + s_out2[s.upstream] for s in settings}
    uniform = {(s.R, s.K): s for s in settings if s.method.name == "uniform"}
    base = variance[baseline.key], seconds(baseline)
    out = []
    for s in settings:
        cost, rival = seconds(s), uniform.get((s.R, s.K))
        free = float(s_out2[s.upstream][0]) * float(seconds(s, draws=False)[0])
        row = Row(
            step=step,
            setting=s,
            variance=interval(variance[s.key], n),
            s_out2=float(s_out2[s.upstream][0]),
            v_in=float(v_in[s.key][0]),
            seconds=float(cost[0]),
            phases=phase_seconds(s, batches),
            ecm=interval(ecm(*base, variance[s.key], cost), n),
            re=None if rival is None else interval(re(variance[rival.key], variance[s.key]), n),
            bound=float(base[0][0] * base[1][0]) / free if free > 0 else float("inf"),
            batches=n,
        )
        out.append(row)
    return out


def phase_seconds(s: Setting, batches: Sequence[Batch]) -> dict[str, float]:
    """Median seconds of a step by phase; all but "step" add up to about that."""
    measured = [b.seconds[s.key] for b in batches]
    return {name: statistics.median(phases[name] for phases in measured) for name in measured[0]}


def tight(table: Sequence[Row], tolerance: float) -> bool:
    """Whether every ECM has an interval within the tolerance."""
    return all(0 <= row.precision <= tolerance for row in table)


@dataclass
class Timesteps:
    """The gradient's size by timestep, in equal parts of the range.

    Attributes:
        t: middles of the parts.
        norm: RMS of |J^T f| in each.
        weight: q of the weight proposal, normalized over the parts.
        oracle: q of the best proposal, in proportion to `norm`.
        share: of the oracle's reduction of E|(p/q) J^T f|^2, what the weight proposal reaches.
    """

    t: list[float]
    norm: list[float]
    weight: list[float]
    oracle: list[float]
    share: float


def timesteps(batches: Sequence[Batch], weights: Tensor, low: int, high: int, bins: int = 12) -> Timesteps:
    """From the single draws of all batches; weights: (T,) w(t)."""
    width = (high - low + 1) / bins
    squares: list[list[float]] = [[] for _ in range(bins)]
    for t, square in (pair for b in batches for pair in b.norms):
        squares[max(0, min(bins - 1, int((t - low) / width)))].append(square)
    kept = [i for i, values in enumerate(squares) if values]
    second = torch.tensor([statistics.fmean(squares[i]) for i in kept], dtype=torch.float64)
    edges = [low + i * width for i in range(bins + 1)]
    w = torch.stack([weights[int(edges[i]) : max(int(edges[i + 1]), int(edges[i]) + 1)].double().mean() for i in kept])
    q, best = w.cpu() / w.sum().cpu(), second.sqrt() / second.sqrt().sum()
    p = torch.full_like(q, 1 / len(kept))
    uniform, weighted = float((p * second).sum()), float((p**2 / q * second).sum())
    oracle = float((p**2 / best * second).sum())
    share = (uniform - weighted) / (uniform - oracle) if uniform > oracle else 1.0
    middles = [(edges[i] + edges[i + 1]) / 2 for i in kept]
    return Timesteps(middles, second.sqrt().tolist(), q.tolist(), best.tolist(), share)
