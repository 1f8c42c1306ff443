"""What `carv compare` is asked for, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from carv_3d.config.request import BudgetOptions, ConfigOptions, LengthOptions, OutOptions
from carv_3d.core.options import EngineOptions, option
from carv_3d.errors import CarvError


@dataclass(frozen=True, kw_only=True)
class CompareOptions(OutOptions):
    """How runs are compared, and where that is written."""

    baseline: str | None = option(None, "The method that others are compared with; unless given, the first.")
    scores: tuple[str, ...] = option((), "Also compare this metric (more is better).")


@dataclass(frozen=True, kw_only=True)
class SweepOptions(
    BudgetOptions,
    LengthOptions,
    ConfigOptions,
    defaults={"budget": None, "steps": None},
    kinds={"budget": float | None, "steps": int | None},
    helps={
        "budget": "Seconds of training time of each run.",
        "steps": "Steps of each run, in place of seconds.",
        "config": "A configuration under all methods.",
    },
):
    """How many new runs, and how long they are."""

    seeds: int = option(1, "Runs of each prompt and method.", least=1, most=10_000)
    points: int = option(20, "Evaluations of each run.", least=1, most=10_000)
    clip: str | None = option(None, "Score with this CLIP, a folder or a hub id.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps == 0:
            raise CarvError("steps is 0; a run that is compared has one at least.")


@dataclass(frozen=True, kw_only=True)
class NewRuns(SweepOptions, EngineOptions):
    """The new runs of a comparison."""

    prompts: tuple[str, ...] = option((), "A prompt.")
    methods: tuple[str, ...] = option((), "NAME alone, NAME=CONFIG, NAME=is+strat, or NAME=key=value,key=value.")
