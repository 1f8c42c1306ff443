"""One network's optimizer: its gradient averaged over processes, checked, clipped, and taken a step along."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from carv_3d.core.non_finite import NonFiniteSteps
from carv_3d.runs.checkpoint import load_optimizer
from carv_3d.runs.ranks import Ranks


class Updates:
    """AdamW on all parameters of a module.

    fp16's loss is scaled by `scale` before its backward; `apply` takes it back.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float,
        betas: tuple[float, float],
        grad_clip: float,
        ranks: Ranks,
        scaled: bool = False,
    ) -> None:
        """scaled: for fp16."""
        self.parameters = list(module.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, betas=betas, weight_decay=0.0)
        self.grad_clip, self.ranks = grad_clip, ranks
        self.scaler: Any = _scaler(self.parameters[0].device.type) if scaled else None
        self.non_finite = NonFiniteSteps(
            "a gradient has not been finite", "lower lr, fake_lr or guidance_scale, or set precision=float32", "update"
        )
        self.non_finite.warned = scaled  # fp16's first updates are left out while its scale is found

    @property
    def scale(self) -> float:
        """What losses are multiplied by in half precision; 1 without."""
        return 1.0 if self.scaler is None else float(self.scaler.get_scale())

    @property
    def skipped(self) -> int:
        """Updates in a row that were left out, because a gradient was not finite."""
        return self.non_finite.count

    def scaled(self, loss: Tensor) -> Tensor:
        """`loss` times `scale`, to call backward on."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def skip(self) -> None:
        """Let the next `apply` be left out, on all processes."""
        self.parameters[0].grad = torch.full_like(self.parameters[0], float("nan"))

    def apply(self) -> float:
        """A step along what is in the parameters' grad; returns its norm before clipping, NaN where it was left out."""
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.ranks.average(gradients)  # before the check: all processes see the same, and step or skip together
        if self.scaler is not None:
            self.scaler.scale(gradients[0].new_ones(()))  # it makes its tables when it first scales something
            self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.grad_clip))
        finite = norm < float("inf")  # False for NaN
        if self.scaler is not None:
            self.scaler.step(self.optimizer)  # it leaves the step out where a gradient is not finite
            self.scaler.update()
        elif finite:
            self.optimizer.step()
        self.non_finite.update(finite)
        return norm if finite else float("nan")

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only."""
        scaler = {} if self.scaler is None else {"scaler": self.scaler.state_dict()}
        return {"optimizer": self.optimizer.state_dict(), "skipped": self.skipped, **scaler}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back `state_dict`."""
        load_optimizer(self.optimizer, state["optimizer"])
        self.non_finite.count = int(state["skipped"])
        if self.scaler is not None and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])


def _scaler(device: str) -> Any:
    new: Any = getattr(torch.amp, "GradScaler", None)  # since torch 2.3
    return torch.cuda.amp.GradScaler() if new is None else new(device)
