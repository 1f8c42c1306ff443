"""`carv distill --dry-run`: settings, model, time and memory of a run, measured; nothing is written."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from carv_3d.core.batching import out_of_memory_as
from carv_3d.core.devices import peak_memory
from carv_3d.distill.command import check_prompts, load_teacher, too_large
from carv_3d.distill.loop import Distillation
from carv_3d.distill.request import DistillRequest, Settings, resolve
from carv_3d.io.files import check_writable
from carv_3d.runs.progress import duration, seconds_a_step


def dry_run(request: DistillRequest, steps: int = 2) -> int:
    """Tell settings, model, time and memory of a run, measured over `steps` steps; write nothing."""
    settings, folder = resolve(request)
    prompts = check_prompts(settings)
    check_writable(folder)
    print(settings.to_yaml(), end="")
    print(f"# folder: {folder}")
    with out_of_memory_as(too_large(settings)):
        return _measured(Distillation(load_teacher(settings), settings.options, prompts), settings, steps)


def _measured(one: Distillation, settings: Settings, steps: int) -> int:
    print(f"# device: {one.device}; generator: {sum(p.numel() for p in one.generator.parameters()):,} parameters")
    each = seconds_a_step(one.train_step, steps)
    total = each * settings.options.steps
    print(f"# time: about {duration(total)} for {settings.options.steps} steps of {each:.2f} s, and the previews")
    print(f"# memory: about {peak_memory(one.device)}")
    print(f"# checkpoint: about {tensor_bytes(one.state_dict()) / 1e9:.2g} GB, kept twice")
    print("# nothing was written")
    return 0


def tensor_bytes(state: Any) -> int:
    """Of all tensors in nested plain data."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(map(tensor_bytes, state.values()))
    return sum(map(tensor_bytes, state)) if isinstance(state, (list, tuple)) else 0
