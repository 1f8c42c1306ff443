"""What goes into an estimate, draws, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(repr=False, eq=False)
class Draws:
    """K draws for each of R renders.

    Attributes:
        t: (R, K) integers, or real numbers of a `ContinuousSchedule`.
        eps: (R, K, ...), noise of the latents' shape.
        weights: (R, K), p/q of each draw; None for 1.
        group_size: how many neighbors along K share a timestep (2 for antithetic pairs).
    """

    t: Tensor
    eps: Tensor
    weights: Tensor | None = None
    group_size: int = 1

    def __repr__(self) -> str:
        pairs = ", in pairs" if self.group_size == 2 else ""
        return f"Draws({_sizes(self.t, self.eps)}, t from {int(self.t.min())} to {int(self.t.max())}{pairs})"


@dataclass(repr=False, eq=False)
class Estimate:
    """One step's estimate. All but `loss` is without autograd.

    Attributes:
        loss: scalar; its gradient w.r.t. the latents is exactly grad / R. Its value, |grad|^2 / 2R, is that of
            threestudio's loss and means nothing by itself.
        residual: (R, K, ...), f of each draw, without p/q; 0 where the draw was dropped. With a control variate, less
            that.
        weights: (R, K), p/q.
        t: (R, K).
        eps: (R, K, ...).
        finite: (R, K), False for a draw that was dropped because f held an inf or a NaN.
        grad: (R, ...), mean_k (p/q) f of each render.
        scalars: K; samples, R K, which eps_hat was given; nonfinite, the draws dropped; ess, (sum p/q)^2 /
            sum (p/q)^2, of R K at best; grad_norm, of `loss` w.r.t. the latents; max_batch, as it now is; and, where a
            render has two groups or more, snr: mean_r |grad_r|^2 over the variance of grad_r among draws. The snr takes
            groups for independent, so under strata it errs on the low side.
        group_size: see `Draws`.
        extra: (R, K, ...), what the residual returned next to f, as it came; None where it returned f alone.
    """

    loss: Tensor
    residual: Tensor
    weights: Tensor
    t: Tensor
    eps: Tensor
    finite: Tensor
    grad: Tensor
    scalars: dict[str, float]
    group_size: int = 1
    extra: Tensor | None = None

    def __repr__(self) -> str:
        figures = ", ".join(f"{name}={self.scalars[name]:.4g}" for name in ("nonfinite", "snr") if name in self.scalars)
        return f"Estimate({_sizes(self.t, self.eps)}, loss={float(self.loss.detach()):.4g}, {figures})"


def _sizes(t: Tensor, eps: Tensor) -> str:
    return f"R={t.shape[0]}, K={t.shape[1]}, latents {tuple(eps.shape[2:])}"
