"""An exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from carv_3d.core.arguments import fits
from carv_3d.errors import CarvError, shown


class Average:
    """Exponential moving average of a module's parameters and buffers, with a warm-up of the decay."""

    def __init__(self, module: nn.Module, decay: float):
        if not fits(decay, float) or not 0 <= decay < 1:
            raise CarvError(f"the average's decay is {shown(decay)}; it must be a number of at least 0 and below 1.")
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

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back a copy of `state`, on the devices and in the types of the module's own.

        Raises:
            ValueError: it has other names or shapes than the module.
        """
        if state.keys() != self.state.keys():
            raise ValueError(f"the average's {min(state.keys() ^ self.state.keys())} is in one of the two alone")
        for name, own in self.state.items():
            if state[name].shape != own.shape:
                raise ValueError(f"the average's {name} is {tuple(state[name].shape)}, and {tuple(own.shape)} is due")
        self.state = {name: state[name].to(own, copy=True) for name, own in self.state.items()}
