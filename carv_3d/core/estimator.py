"""Latents in, a loss out: its gradient is the mean over draws, by one upstream call and one backward.

    g = 1/R sum_r J_r^T [ 1/K sum_k (p/q)(t_rk) f(z_r, t_rk, eps_rk) ]      (arXiv 2605.21489, "reuse")

f = w(t) (eps_hat(z_t, t, y) - eps) for score distillation; any other f goes through `estimate_residual`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from carv_3d.core.arguments import checked
from carv_3d.core.batching import is_out_of_memory, run_in_batches
from carv_3d.core.checks import (
    FLOATS,
    Cond,
    check_call,
    check_draws_fit,
    check_prediction,
    check_scale,
    check_setup,
    check_taken,
    conditions,
    draws_fit_memory,
    takes_whole_state,
    too_many_draws,
)
from carv_3d.core.control import EpsControl
from carv_3d.core.costs import CostMeter
from carv_3d.core.designs import Design
from carv_3d.core.estimate import Draws, Estimate
from carv_3d.core.extras import gathered
from carv_3d.core.non_finite import NonFiniteSteps, checked_count
from carv_3d.core.options import ResidualOptions, SamplingOptions, StepOptions, WeightingOptions, option
from carv_3d.core.proposals import make_proposal
from carv_3d.core.reduction import draw_groups, draw_statistics, finite_draws, per_draw, surrogate_loss
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError

__all__ = ["CarvEstimator", "Cond", "Draws", "Estimate", "EstimatorOptions"]

Residual = Callable[..., Tensor | tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class EstimatorOptions(
    SamplingOptions,
    StepOptions,
    ResidualOptions,
    WeightingOptions,
    kinds={"num_draws": int, "min_step": int | None, "max_step": int | None},
    defaults={"min_step": None, "max_step": None},
):
    """What the estimator is given.

    num_draws, max_batch and the range of timesteps say where it begins; from then on they are the estimator's own.
    Without min_step or max_step the range is from 2 % to 98 % of the schedule's timesteps.

    Raises:
        CarvError: naming the option, for a value that cannot be meant.
    """

    adaptive_bins: int = option(50, "Bins over the timesteps, of the adaptive proposal.", least=1, most=10**6)
    adaptive_floor: float = option(0.1, "Share of the adaptive proposal that stays uniform.", above=0, most=1)
    adaptive_decay: float = option(0.99, "Decay of the adaptive proposal's running means.", above=0, most=1)
    rank: int = option(0, "This process among those that stratify, each with its own generator.", least=0, most=2**20)
    world_size: int = option(1, "How many processes stratify together.", least=1, most=2**20)
    shared_seed: int = option(0, "Deals strata out to the ranks; the same on all.", least=0, below=2**63)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rank < self.world_size:
            raise CarvError(f"rank is {self.rank}; with world_size {self.world_size} it must be below that.")

    def timestep_range(self, T: int) -> tuple[int, int]:
        """The smallest and the largest timestep, of a schedule of T."""
        low, high = self.min_step, self.max_step
        return int(0.02 * T) if low is None else low, min(int(0.98 * T), T - 1) if high is None else high


class CarvEstimator:
    """Draws timesteps and noise, runs the teacher on them in bounded batches, and gives the loss.

        estimator = CarvEstimator(schedule, EstimatorOptions(num_draws=8))
        latents = encode(render(camera))                        # (R, C, H, W), with autograd
        estimate = estimator.estimate(latents, eps_hat)         # eps_hat(z_t, t) on at most max_batch samples
        estimate.loss.backward()

    No torch module: nothing lands in a host's checkpoint unless the host saves `state_dict()`.
    """

    @checked
    def __init__(
        self,
        schedule: NoiseSchedule,
        options: EstimatorOptions | None = None,
        *,
        meter: CostMeter | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """An estimator for one objective.

        Args:
            schedule: the model's; it follows the latents to their device.
            options: see there.
            meter: gets the seconds of the phase "denoise" and the count "draws".
            weights: (T,), what multiplies the residual of `estimate_residual` where `options.weighting` has no name
                for it; proposals are built on it.
        """
        self.options = o = EstimatorOptions() if options is None else options
        check_setup(schedule, o, EstimatorOptions, meter)
        self.schedule, self.meter = schedule, meter
        self.design = Design(stratify=o.stratify, antithetic=o.antithetic)
        adaptive = {"bins": o.adaptive_bins, "floor": o.adaptive_floor, "decay": o.adaptive_decay}
        if o.proposal != "adaptive":
            adaptive = {}
        weighting = o.weighting if weights is None else weights
        low, high = o.timestep_range(schedule.num_train_timesteps)
        self.proposal = make_proposal(o.proposal, schedule, weighting, low, high, **adaptive)
        self.control = EpsControl(self.proposal.weights) if o.control_variate else None
        self._num_draws, self._max_batch = o.K, o.max_batch
        self.non_finite: NonFiniteSteps | None = NonFiniteSteps(
            "eps_hat gave no finite draw", "look for NaN in the latents, lower the learning rate, or use float32"
        )
        self._shared = torch.Generator().manual_seed(o.shared_seed)

    def __repr__(self) -> str:
        o, p = self.options, self.proposal
        pairs = ", antithetic" if o.antithetic else ""
        return (
            f"CarvEstimator(K={self.num_draws}, {p.name} proposal on {p.min_step} .. {p.max_step}, "
            f"stratify {o.stratify}{pairs}, {self.schedule!r})"
        )

    @property
    def num_draws(self) -> int:
        """K, which may be set; CarvError for one that does not fit the layout."""
        return self._num_draws

    @num_draws.setter
    def num_draws(self, K: int) -> None:
        K = self.options.declared()["num_draws"].check(K)
        self.design.check(K)
        self._num_draws = K

    @property
    def max_batch(self) -> int:
        """The most samples at once; it may be set."""
        return self._max_batch

    @max_batch.setter
    def max_batch(self, samples: int) -> None:
        self._max_batch = self.options.declared()["max_batch"].check(samples)

    @checked
    def set_range(self, min_step: int, max_step: int) -> None:
        """Timesteps are min_step .. max_step from now on; call it at every step if they are annealed.

        Args:
            min_step: the smallest.
            max_step: the largest, included.

        Raises:
            CarvError: the range is empty or leaves the schedule.
        """
        self.proposal.set_range(min_step, max_step)

    def draw(self, latents: Tensor, generator: torch.Generator | None = None, num_draws: int | None = None) -> Draws:
        """K draws for each of R latents, laid out by the options.

        Args:
            latents: (R, ...), of which shape, dtype and device count.
            generator: of every random number, first u, then eps; torch's global one if None.
            num_draws: K in place of the estimator's.

        Returns:
            t (R, K), eps (R, K, ...) and p/q (R, K), without autograd.

        Raises:
            CarvError: a K that does not fit the layout, or more noise than memory holds.
        """
        usual = isinstance(latents, Tensor) and latents.dtype in FLOATS and 2 <= latents.dim() <= 8 and latents.numel()
        if not usual or not isinstance(generator, torch.Generator | None):
            check_call(self.draw, latents, generator)
        R, device, o = latents.shape[0], latents.device, self.options
        K = self.num_draws if num_draws is None else num_draws
        if num_draws is not None:
            self.design.check(K)
        self._move(device)
        try:
            needed = K * latents.numel() * latents.element_size()
            if needed > 2**26 and not draws_fit_memory(needed, latents.device):
                raise MemoryError
            u = self.design.draw_u(R, K, generator, device, o.rank, o.world_size, self._shared)
            eps = self.design.draw_eps(R, K, tuple(latents.shape[1:]), generator, device, latents.dtype)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise CarvError(too_many_draws(K, latents)) from error
        group_size = self.design.group_size
        t, weights = self.proposal.sample(u)
        return Draws(t, eps, weights, group_size)

    @checked
    def estimate(
        self,
        latents: Tensor,
        eps_hat: Callable[..., Tensor],
        cond: Cond = None,
        generator: torch.Generator | None = None,
        *,
        draws: Draws | None = None,
        num_draws: int | None = None,
        grad_clip: float | None = None,
    ) -> Estimate:
        """Score distillation: f = w(t) (eps_hat(z_t, t, *cond) - eps).

        A draw whose f is not finite is dropped: it counts as 0 in the mean, which is still over K, so that the rest
        keeps its weight and the estimate stays unbiased for f restricted to where it is finite, whatever the proposal
        and the design.

        Args:
            latents: (R, C, h, w), or (R, ...) of any shape; the loss is differentiable in them and in nothing else. If
                they need no gradient, `Estimate.grad` is still theirs.
            eps_hat: called as eps_hat(z_t (N, ...), t (N,), *samples of cond) without autograd, N <= max_batch; returns
                (N, ...), with guidance inside.
            cond: None, or tensors of R samples, each of which goes with the draws of its render.
            generator: of every random number, on any device; torch's global one if None.
            draws: explicit draws; nothing is drawn then, and an adaptive proposal learns nothing from them.
            num_draws: K in place of the estimator's. One chosen from measured variances must come from earlier steps
                than the one it is used in.
            grad_clip: in place of the option.

        Raises:
            CarvError: shapes that do not fit, memory that runs out on a single sample, or many steps in a row without a
                finite draw (`self.non_finite`).
        """
        check_call(eps_hat, latents, generator)

        def residual(z_t: Tensor, t: Tensor, eps: Tensor, *samples: Tensor) -> Tensor:
            w = self.schedule.w(t, self.options.weighting).to(eps.dtype)  # first: eps_hat may write to its t
            try:
                predicted = eps_hat(z_t, t, *samples)
            except TypeError as error:
                check_taken("eps_hat", "z_t, t", len(samples), error)
                raise
            check_prediction("eps_hat", predicted, z_t)
            return w.view(-1, *[1] * (eps.dim() - 1)) * (predicted - eps)

        return self.estimate_residual(
            latents, residual, cond, generator, draws=draws, num_draws=num_draws, grad_clip=grad_clip
        )

    def estimate_residual(
        self,
        latents: Tensor,
        residual: Residual,
        cond: Cond = None,
        generator: torch.Generator | None = None,
        *,
        draws: Draws | None = None,
        num_draws: int | None = None,
        grad_clip: float | None = None,
    ) -> Estimate:
        """As `estimate`, for any residual.

        Args:
            latents: (R, ...); the loss is differentiable in them and in nothing else.
            residual: f = residual(z_t (N, ...), t (N,), eps (N, ...), *samples of cond) -> (N, ...), called without
                autograd. It holds the objective's weight, as in `options.weighting`; what is nonlinear in a draw
                belongs in it. It may return (f, extra), extra (N, ...) of any shape: the same draws' contribution to a
                second gradient (in image space, say), see `Estimate.extra` and `reduction.reduce_draws`.
            cond: as of `estimate`; so are the others.
            generator: of every random number.
            draws: explicit draws.
            num_draws: K in place of the estimator's.
            grad_clip: in place of the option.

        Raises:
            CarvError: as `estimate`.
        """
        check_call(residual, latents, generator)
        check_scale(latents)
        samples = conditions(cond, len(latents))
        clip = self.options.grad_clip if grad_clip is None else self.options.declared()["grad_clip"].check(grad_clip)
        self._move(latents.device)
        own = draws is None
        if draws is None:
            draws = self.draw(latents, generator, num_draws)
        else:
            check_draws_fit(draws, latents, self.schedule)
        R, K = draws.t.shape
        dtype = torch.promote_types(latents.dtype, torch.float32)
        with torch.no_grad():
            f, extra = self._run(latents.detach(), residual, samples, draws, dtype)
            f = f.unflatten(0, (R, K))
            weights = torch.ones(R, K, device=f.device) if draws.weights is None else draws.weights
            weights = weights.to(device=f.device, dtype=dtype)
            f, finite = finite_draws(f, clip)
            if self.control is not None:
                f = self.control.subtract(f, draws.t, draws.eps, finite if own else None)
            weighted = per_draw(weights, f) * f
            grad = weighted.mean(1)
        loss = surrogate_loss(latents, grad)
        scalars = {"K": float(K), "samples": float(R * K), "max_batch": float(self._max_batch)}
        scalars |= draw_statistics(weighted, weights, finite, grad, draws.group_size)
        if own and self.proposal.adapts:
            self._teach(f, finite, draws)
        if self.non_finite is not None:  # None: the host counts
            self.non_finite.update(scalars["nonfinite"] < R * K)
        extra = None if extra is None else extra.unflatten(0, (R, K))
        return Estimate(loss, f, weights, draws.t, draws.eps, finite, grad, scalars, draws.group_size, extra)

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to resume as if it had not stopped (the caller's generator apart)."""
        control = {} if self.control is None else {"control": self.control.state_dict()}
        count = 0 if self.non_finite is None else self.non_finite.count
        counted = {"non_finite": count} if count else {}
        shared = self._shared.get_state()
        return {"proposal": self.proposal.state_dict(), "shared_generator": shared, **control, **counted}

    @takes_whole_state("CarvEstimator")
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises CarvError for the state of another proposal, and for what is no state; its own is then kept."""
        self.proposal.load_state_dict(state["proposal"])
        if self.control is not None and "control" in state:
            self.control.load_state_dict(state["control"])
        if self.non_finite is not None:
            self.non_finite.count = checked_count(state.get("non_finite", 0))
        self._shared.set_state(state["shared_generator"].cpu())

    def _move(self, device: torch.device) -> None:
        if self.schedule.alphas_cumprod.device != device:
            self.schedule = self.schedule.to(device)
        if self.proposal.weights.device != device:
            self.proposal.to(device)

    def _run(
        self, latents: Tensor, residual: Residual, cond: tuple[Tensor, ...], draws: Draws, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        """All R K samples' f and extra, (R K, ...), in batches of at most max_batch and of about equal size."""
        K = draws.t.shape[1]
        t = draws.t.flatten().to(latents.device)
        eps = draws.eps.flatten(0, 1).to(latents)
        extra: Tensor | None = None

        def batch(begin: int, end: int) -> Tensor:
            nonlocal extra
            if K == 1:  # the latents keep their memory format, and so the model's kernels their last bits
                z, samples = latents[begin:end], [c[begin:end].clone() for c in cond]
            else:
                render = torch.arange(begin, end, device=t.device).div(K, rounding_mode="floor")
                z, samples = latents[render], [c[render.to(c.device)] for c in cond]
            z_t = self.schedule.add_noise(z, eps[begin:end], t[begin:end])
            # copies: a model may write to its arguments, and the draws and the caller's embeddings are used again
            try:
                f = residual(z_t, t[begin:end].clone(), eps[begin:end].clone(), *samples)
            except TypeError as error:
                check_taken("the residual", "z_t, t, eps", len(samples), error)
                raise
            f, second = f if isinstance(f, tuple) and len(f) == 2 else (f, None)
            like = isinstance(f, Tensor) and f.shape == z_t.shape and f.layout == z_t.layout
            if not like or f.device != z_t.device or f.dtype not in FLOATS:
                check_prediction("the residual", f, z_t)
            if second is not None or extra is not None:
                extra = gathered(extra, len(t), begin, second, z_t)
            return f

        out = torch.empty(eps.shape, device=latents.device, dtype=dtype)
        with contextlib.nullcontext() if self.meter is None else self.meter.phase("denoise"):
            self._max_batch = run_in_batches(batch, out, self._max_batch)
        if self.meter is not None:
            self.meter.count(draws=len(t))
        return out, extra

    def _teach(self, f: Tensor, finite: Tensor, draws: Draws) -> None:
        """Show an adaptive proposal |f|^2 of each group as it was drawn: of the pair's mean for pairs."""
        whole = draw_groups(finite, draws.group_size).all(2)
        value = draw_groups(f, draws.group_size).mean(2).flatten(2).square().sum(-1)
        value = torch.where(whole, value, torch.full_like(value, float("nan")))
        self.proposal.update(draw_groups(draws.t, draws.group_size)[:, :, 0], value)
