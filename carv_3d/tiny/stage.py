"""One stage of training: a loop with warm-up and decay, an average of the weights, progress, and resuming."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor, nn

from carv_3d.core.ema import Average
from carv_3d.core.seeds import step_seed
from carv_3d.errors import CarvError
from carv_3d.io.files import os_errors_explained
from carv_3d.runs.checkpoint import check_made_with, has_checkpoint, state_fits
from carv_3d.runs.progress import Display
from carv_3d.runs.run import Pace, Run

WARM_UP = 200  # steps
# 19 ms where 68 were, for the 11 million weights of the UNet and two threads; None is torch's own choice
FUSED = True if Version(torch.__version__) >= Version("2.4") else None


def run_command(parser: argparse.ArgumentParser, work: Callable[[], None]) -> None:
    """Do a command's work; what the user can mend ends it with one sentence and status 2, a signal with 130."""
    try:
        with os_errors_explained():
            work()
    except CarvError as error:
        parser.exit(2, f"{error}\n")
    except KeyboardInterrupt:  # the stage has said what it kept
        parser.exit(130)


@dataclass(frozen=True)
class StagePlan:
    """How a stage is trained.

    Args:
        steps: of the optimizer.
        lr: learning rate after the warm-up; it falls along a cosine to a hundredth.
        seed: of the steps' generators.
        ema: decay of the weights' average.
        slower: beginnings of parameters' names, and the share of the learning rate that these get.
        save_every: seconds between two checkpoints.
    """

    steps: int
    lr: float
    seed: int
    ema: float = 0.999
    weight_decay: float = 1e-2
    slower: Mapping[str, float] = field(default_factory=dict)
    save_every: float = 120.0


class StageTrainer:
    """A module, its optimizer and the average of its weights; a `carv_3d.runs.run.Trainer`."""

    def __init__(
        self,
        module: nn.Module,
        step_loss: Callable[[int, torch.Generator], Tensor],
        options: StagePlan,
        made_with: Mapping[str, Any],
        path: Path,
    ) -> None:
        """step_loss: of a step and its generator. made_with: what a checkpoint at `path` must agree with."""
        self.module, self.step_loss, self.options = module, step_loss, options
        self.made_with, self.path = dict(made_with), path
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            share = next((f for k, f in options.slower.items() if name.startswith(k)), 1.0)
            groups.setdefault(share, []).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": p, "share": f} for f, p in groups.items()], lr=options.lr, betas=(0.9, 0.99),
            weight_decay=options.weight_decay, fused=FUSED,
        )  # fmt: skip
        self.average, self.step, self.smooth = Average(module, options.ema), 0, math.nan
        module.train()

    def train_step(self) -> dict[str, float]:
        """One step; its running mean of the loss."""
        o, step = self.options, self.step
        generator = torch.Generator().manual_seed(step_seed(o.seed, step))
        for group in self.optimizer.param_groups:
            fall = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / o.steps))
            group["lr"] = group["share"] * o.lr * min(1.0, (step + 1) / WARM_UP) * fall
        loss = self.step_loss(step, generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.module, step)
        self.smooth = loss.item() if math.isnan(self.smooth) else 0.98 * self.smooth + 0.02 * loss.item()
        self.step = step + 1
        return {"loss": self.smooth}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only."""
        return {
            "module": self.module.state_dict(), "optimizer": self.optimizer.state_dict(),
            "average": self.average.state, "step": self.step, "made_with": self.made_with,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; CarvError where it was made with other values."""
        check_made_with(self.path, state, self.made_with, "give those, another --work, or delete it")
        with state_fits("this stage", state, self.state_dict()):
            self.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            for group in self.optimizer.param_groups:
                group["fused"] = FUSED  # not that of the machine that the checkpoint comes from
            self.average.load_state_dict(state["average"])
            self.step = state["step"]


class Stage(Run):
    """A stage in its working folder: NAME.pt there is its checkpoint."""

    def __init__(
        self,
        name: str,
        trainer: StageTrainer,
        on_save: Callable[[dict[str, Tensor], int], None] | None = None,
        log: Callable[[str], None] = print,
    ) -> None:
        o = trainer.options
        super().__init__(trainer, trainer.path.parent, Display(write=log), Pace(o.steps, save_seconds=o.save_every))
        self.name, self.stage, self.on_save, self.checkpoint = name, trainer, on_save, trainer.path

    def saved(self) -> None:
        """Hand over the averaged weights."""
        if self.on_save is not None:
            self.on_save(self.stage.average.state, self.stage.step)


def run_stage(
    name: str,
    module: nn.Module,
    step_loss: Callable[[int, torch.Generator], Tensor],
    options: StagePlan,
    folder: Path,
    made_with: Mapping[str, Any],
    on_begin: Callable[[], None] | None = None,
    on_save: Callable[[dict[str, Tensor], int], None] | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, Tensor]:
    """Train `module` on `step_loss(step, generator)`; a later call resumes from the last checkpoint in `folder`.

    Args:
        name: of the stage and its checkpoint.
        module: trained in place.
        step_loss: a step's loss, a scalar with a graph.
        options: steps, rate, seed and time between checkpoints.
        folder: of the checkpoint; made where it is missing.
        made_with: what a checkpoint depends on.
        on_begin: called once where steps are left, with the checkpoint's weights in place.
        on_save: called with the averaged weights and the step after each checkpoint.
        log: takes the lines of progress.

    Returns:
        The averaged weights.

    Raises:
        CarvError: a checkpoint that was made with other values.
        KeyboardInterrupt: a signal stopped it; it is saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trainer = StageTrainer(module, step_loss, options, made_with, folder / f"{name}.pt")
    stage = Stage(name, trainer, on_save, log)
    stage.open(has_checkpoint(trainer.path))
    if on_begin is not None and trainer.step < options.steps:
        on_begin()
    log(f"{name}: {options.steps} steps, {trainer.step} are done")
    if stage.train():
        log(f"{name}: stopped after step {trainer.step}; the same command resumes it")
        raise KeyboardInterrupt
    return trainer.average.state
