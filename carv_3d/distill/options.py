"""The options of a distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from carv_3d.config.request import LengthOptions, PromptFileOptions
from carv_3d.core.estimator import EstimatorOptions
from carv_3d.core.options import AdamOptions, BatchOptions, RunOptions, SamplingOptions, option
from carv_3d.guidance.options import ScoreOptions
from carv_3d.objectives.table import MatchingObjective


@dataclass(frozen=True, kw_only=True)
class DistillOptions(
    ScoreOptions,
    AdamOptions,
    BatchOptions,
    LengthOptions,
    PromptFileOptions,
    RunOptions,
    defaults={
        "proposal": "uniform",
        "max_batch": 32,
        "guidance_scale": 3.5,
        "lr": 2e-5,
        "batch_size": 8,
        "objective": "dmd",
    },
    kinds={
        "num_draws": int,
        "guidance_scale": float,
        "min_step_percent": float,
        "max_step_percent": float,
        "objective": MatchingObjective,
    },
    helps={
        "objective": "dmd, with the normalizer of each draw; kl, without, see `carv_3d.objectives`.",
        "prompts": "A text file with a prompt on each line; carv-tiny alone has its own.",
    },
    renamed={"grad_clip": "max_grad_norm"},
):
    """One-step distillation. Raises CarvError, naming the option, for a value that cannot be meant.

    Under objective=dmd the proposal "weight" is uniform: the normalizer leaves no factor of t alone. The guidance scale
    is the real score's; the fake score has none. Where fake_draws is odd, the fake's draws have no pairs.
    """

    fake_updates: int = option(
        2,
        "Updates of the fake score per update of the generator (DMD2's two time scales).",
        least=1,
        most=100,  # DMD2 takes 5; more would be minutes a step
    )
    fake_draws: int = option(2, "K_fake, draws per sample that train the fake score.", least=1, most=2**20)
    fake_lr: float = option(1e-4, "Learning rate of the fake score.", above=0, most=1000)
    max_grad_norm: float = option(
        10.0,
        "Largest norm of an update's whole gradient, after the mean over draws; also the fake score's.",
        above=0,
        most=1e30,
    )
    ema: float = option(
        0.99,
        "Decay of the average of the generator's weights, which previews and the finished model have.",
        least=0,
        below=1,
    )
    precision: Literal["float32", "bf16", "fp16"] = option(
        "float32", "What generator and fake score compute in (fp16: CUDA alone); their weights stay float32."
    )
    preview_every: int = option(100, "Steps between two previews.", least=1, most=10**9)
    preview_prompts: int = option(8, "Prompts of a preview.", least=1, most=1024)
    save_every: float = option(300.0, "Seconds between two checkpoints.", least=0, most=10**9)

    def estimator(self, num_train_timesteps: int, rank: int = 0, world_size: int = 1) -> EstimatorOptions:
        """Of the generator's gradient, for a teacher with that many timesteps."""
        low, high = self.timestep_range(num_train_timesteps, 0)
        shared = {name: getattr(self, name) for name in SamplingOptions.declared()}
        return EstimatorOptions(
            **shared, weighting="uniform", min_step=low, max_step=high, rank=rank, world_size=world_size
        )
