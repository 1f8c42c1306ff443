"""What `carv compare` is asked for, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from carv_3d.config.request import OutOptions
from carv_3d.core.options import Options, option


@dataclass(frozen=True, kw_only=True)
class CompareOptions(OutOptions):
    """How runs are compared, and where that is written."""

    baseline: str | None = option(None, "The method that others are compared with; unless given, the first.")
    scores: tuple[str, ...] = option((), "Also compare this metric (more is better).")


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Options):
    """Where new runs are made."""

    engine: Literal["local", "ray"] = option("local", "local, or ray: several runs at once.")
    address: str | None = option(None, "HOST:PORT of a Ray cluster; unless given, one is started here.")
    workers: int | None = option(None, "Workers of the Ray started here; unless given, the cores.", least=1, most=4096)


@dataclass(frozen=True, kw_only=True)
class SweepOptions(Options):
    """How many new runs, and how long they are."""

    budget: float | None = option(None, "Seconds of training time of each run.", above=0, most=10**8)
    steps: int | None = option(None, "Steps of each run, in place of seconds.", least=1, most=10**9)
    seeds: int = option(1, "Runs of each prompt and method.", least=1, most=10_000)
    points: int = option(20, "Evaluations of each run.", least=1, most=10_000)
    config: Path | None = option(None, "A configuration under all methods.")
    clip: str | None = option(None, "Score with this CLIP, a folder or a hub id.")


@dataclass(frozen=True, kw_only=True)
class NewRuns(SweepOptions, EngineOptions):
    """The new runs of a comparison."""

    prompts: tuple[str, ...] = option((), "A prompt.")
    methods: tuple[str, ...] = option((), "NAME alone, NAME=CONFIG, NAME=is+strat, or NAME=key=value,key=value.")
