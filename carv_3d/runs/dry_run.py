"""What a run would cost, measured over a few steps; nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from carv_3d.core.devices import peak_memory
from carv_3d.runs.progress import duration, seconds_a_step
from carv_3d.runs.run import Trainer


def print_costs(
    trainer: Trainer, what: str, module: nn.Module, device: torch.device, steps: int, then: Callable[[], str]
) -> None:
    """Print device, time, memory and the checkpoint's size as comments of YAML.

    Args:
        trainer: is advanced by three steps.
        what: is trained, such as "field: voxel".
        module: the one whose parameters are counted.
        device: where it is.
        steps: of the whole run.
        then: what follows the steps, such as "then 5 s for the outputs"; called after the steps are measured.
    """
    print(f"# device: {device}; {what}, {sum(p.numel() for p in module.parameters()):,} parameters")
    each = seconds_a_step(trainer.train_step, 2)
    print(f"# time: about {duration(each * steps)} for {steps} steps of {each:.2f} s, {then()}")
    print(f"# memory: about {peak_memory(device)}")
    print(f"# checkpoint: about {tensor_bytes(trainer.state_dict()) / 1e9:.2g} GB, kept twice")
    print("# nothing was written")


def tensor_bytes(state: Any) -> int:
    """Of all tensors in nested plain data."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(map(tensor_bytes, state.values()))
    return sum(map(tensor_bytes, state)) if isinstance(state, (list, tuple)) else 0
