"""An exponential moving average of a network's weights."""

from __future__ import annotations

import torch
from torch import nn


class Average:
    """Exponential moving average of a module's parameters and buffers, with a warm-up of the decay."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """After step `step` (from 0): the decay is (1 + step) / (10 + step), and `decay` at most."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for k, v in module.state_dict().items():
            if v.is_floating_point():
                self.state[k].lerp_(v, 1 - decay)
            else:
                self.state[k].copy_(v)
