"""One stage of training: a loop with warm-up and decay, an average of the weights, progress, and resuming."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor, nn

from carv_3d.core.ema import Average
from carv_3d.core.seeds import step_seed
from carv_3d.errors import CarvError
from carv_3d.io.files import os_errors_explained
from carv_3d.runs.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint

# 19 ms where 68 were, for the 11 million weights of the UNet and two threads; None is torch's own choice
FUSED = True if Version(torch.__version__) >= Version("2.4") else None


def told_by(parser: argparse.ArgumentParser, work: Callable[[], None]) -> None:
    """Do the work; what the user can mend ends it with one sentence and status 2."""
    try:
        with os_errors_explained():
            work()
    except CarvError as error:
        parser.exit(2, f"{error}\n")


def run_stage(
    name: str,
    module: nn.Module,
    loss_of: Callable[[int, torch.Generator], Tensor],
    *,
    steps: int,
    lr: float,
    folder: Path,
    seed: int,
    made_with: dict[str, Any],
    ema: float = 0.999,
    weight_decay: float = 1e-2,
    slower: dict[str, float] | None = None,
    save_every: float = 120.0,
    on_begin: Callable[[], None] | None = None,
    on_save: Callable[[dict[str, Tensor], int], None] | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, Tensor]:
    """Train ``module`` for ``steps`` of ``loss_of(step, generator)``; returns the averaged weights.

    Killed at any moment, a later call goes on from the last checkpoint in ``folder`` (every ``save_every`` seconds).
    A checkpoint whose ``made_with`` differs raises :class:`CarvError`.
    The learning rate warms up over 200 steps and falls along a cosine to a hundredth; parameters whose name begins with
    a key of ``slower`` get that share of it. ``on_begin`` is called once where steps are left, with the checkpoint's
    weights in place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.pt"
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter_name, parameter in module.named_parameters():
        share = next((f for k, f in (slower or {}).items() if parameter_name.startswith(k)), 1.0)
        groups.setdefault(share, []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": p, "share": f} for f, p in groups.items()], lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay,
        fused=FUSED,
    )  # fmt: skip
    average, first = Average(module, ema), 0
    if has_checkpoint(path):
        state, _ = load_checkpoint(path, going_on=True)
        differs = [k for k in made_with if state["made_with"].get(k) != made_with[k]]
        if differs:
            raise CarvError(
                f"{path} was made with other values of {', '.join(differs)}: give those, another --work, or delete it."
            )
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        for group in optimizer.param_groups:
            group["fused"] = FUSED  # not that of the machine that the checkpoint comes from
        average.state, first = state["average"], state["step"]
    module.train()
    if on_begin is not None and first < steps:
        on_begin()
    begun = saved = shown = time.monotonic()
    smooth = math.nan
    for step in range(first, steps):
        generator = torch.Generator().manual_seed(step_seed(seed, step))
        for group in optimizer.param_groups:
            fall = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps))
            group["lr"] = group["share"] * lr * min(1.0, (step + 1) / 200) * fall
        loss = loss_of(step, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        average.update(module, step)
        smooth = loss.item() if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss.item()
        now, last = time.monotonic(), step + 1 == steps
        if now - shown > 15 or last:
            pace = (now - begun) / (step + 1 - first)
            log(f"{name}: step {step + 1}/{steps}, loss {smooth:.4f}, {pace * 1e3:.0f} ms a step, "
                f"{pace * (steps - step - 1) / 60:.1f} min left")  # fmt: skip
            shown = now
        if now - saved > save_every or last:
            save_checkpoint(path, {"module": module.state_dict(), "optimizer": optimizer.state_dict(),
                                   "average": average.state, "step": step + 1, "made_with": made_with})  # fmt: skip
            if on_save is not None:
                on_save(average.state, step + 1)
            saved = time.monotonic()
    return average.state
