"""The scalar whose gradient is a feature: the training loss, or one of D-TRAK's stand-ins for it.

D-TRAK (arXiv 2311.00500) found gradients of the squared norm of the *output* to attribute better than those of the
loss, though they are not the training objective's. The names are that paper's.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from carv_3d.errors import CarvError


def _squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square().flatten(1).mean(1)


def _mean_squared_l2(prediction: Tensor, target: Tensor) -> Tensor:
    return prediction.square().flatten(1).mean(1)


def _mean(prediction: Tensor, target: Tensor) -> Tensor:
    return prediction.flatten(1).mean(1)


def _l1(prediction: Tensor, target: Tensor) -> Tensor:
    return prediction.flatten(1).abs().mean(1)


def _l2(prediction: Tensor, target: Tensor) -> Tensor:
    return prediction.flatten(1).norm(dim=1)


def _linf(prediction: Tensor, target: Tensor) -> Tensor:
    return prediction.flatten(1).abs().amax(1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "loss": _squared_error,
    "mean-squared-l2-norm": _mean_squared_l2,
    "mean": _mean,
    "l1-norm": _l1,
    "l2-norm": _l2,
    "linf-norm": _linf,
}


def loss_rows(name: str, prediction: Tensor, target: Tensor) -> Tensor:
    """(N,) of prediction and target (N, ...), what the model predicts (eps or v) and is trained towards.

    Differentiable in `prediction`. Raises CarvError for a name that is not in LOSSES.
    """
    if name not in LOSSES:
        raise CarvError(f"loss is {name!r}; it must be one of {', '.join(LOSSES)}.")
    return LOSSES[name](prediction, target)
