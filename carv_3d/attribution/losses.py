"""The scalar whose gradient is a feature: the training loss, or one of D-TRAK's stand-ins for it.

D-TRAK (arXiv 2311.00500) found gradients of the squared norm of the *output* to attribute better than those of the
loss, though they are not the training objective's. The names are that paper's.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from carv_3d.core.arguments import described
from carv_3d.errors import CarvError

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # of samples (N, D) of prediction and target
    "loss": lambda prediction, target: (prediction - target).square().mean(1),
    "mean-squared-l2-norm": lambda prediction, target: prediction.square().mean(1),
    "mean": lambda prediction, target: prediction.mean(1),
    "l1-norm": lambda prediction, target: prediction.abs().mean(1),
    "l2-norm": lambda prediction, target: prediction.norm(dim=1),
    "linf-norm": lambda prediction, target: prediction.abs().amax(1),
}


def sample_losses(name: str, prediction: Tensor, target: Tensor) -> Tensor:
    """(N,) of prediction and target (N, ...), what the model predicts (eps or v) and is trained towards.

    Differentiable in `prediction`. Raises CarvError for a name that is not in LOSSES.
    """
    if name not in LOSSES:
        raise CarvError(f"loss is {name!r}; it must be one of {', '.join(LOSSES)}.")
    if not isinstance(prediction, Tensor) or prediction.shape != target.shape:
        given = tuple(prediction.shape) if isinstance(prediction, Tensor) else described(prediction)
        raise CarvError(f"the model predicted {given}; it must be a tensor {tuple(target.shape)}, as z_t is.")
    return LOSSES[name](prediction.flatten(1), target.flatten(1))


def with_gradient(loss: Tensor) -> Tensor:
    """The loss, which can be differentiated; CarvError where the model has cut that off."""
    if not loss.requires_grad:
        raise CarvError(
            "the loss has no gradient, since the model runs under no_grad or detaches what it predicts: let it predict "
            "with gradients."
        )
    return loss
