"""What commands are asked for, as their flags say it. No torch is imported here: `carv COMMAND --help` reads it."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from carv_3d.core.options import EngineOptions, Options, SeedOptions, option


@dataclass(frozen=True, kw_only=True)
class OutOptions(Options):
    """Where a command writes."""

    out: Path | None = option(None, "The folder; unless given, one in outputs/.")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """Which model."""

    model: str | None = option(None, "carv-tiny, a diffusers folder or a hub id.")


@dataclass(frozen=True, kw_only=True)
class TextOptions(Options):
    """A prompt, in Unicode's form NFC: accents that are typed as letters of their own name the same run."""

    prompt: str = option("", "The text that an image or an asset is of.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("prompt", unicodedata.normalize("NFC", self.prompt))


@dataclass(frozen=True, kw_only=True)
class BudgetOptions(Options):
    """How long something takes at most."""

    budget: float = option(600.0, "Seconds of all measuring.", above=0, most=10**8)


@dataclass(frozen=True, kw_only=True)
class LengthOptions(Options):
    """How long a run is."""

    steps: int = option(1000, "Updates of the generator.", least=0, most=10**9)


@dataclass(frozen=True, kw_only=True)
class ConfigOptions(Options):
    """A file of options."""

    config: Path | None = option(None, "A YAML file, or the name of one that comes with carv_3d.")


@dataclass(frozen=True, kw_only=True)
class CommandRequest(
    OutOptions,
    SeedOptions,
    defaults={"seed": None},
    kinds={"seed": int | None},
    helps={"seed": "Seed of all random numbers; unless given, the configuration's, else 0."},
):
    """What a command was asked for."""

    resume: bool = option(False, "Continue what is in the folder.")
    overrides: tuple[str, ...] = option((), "Options as key=value.")


@dataclass(frozen=True, kw_only=True)
class MeasureRequest(CommandRequest, BudgetOptions):
    """What a command that measures variance was asked for."""


@dataclass(frozen=True, kw_only=True)
class GenerateRequest(
    ConfigOptions, TextOptions, CommandRequest, helps={"out": "The folder; unless given, outputs/PROMPT-SEED."}
):
    """What `carv generate` was asked for."""


@dataclass(frozen=True, kw_only=True)
class PromptFileOptions(Options):
    """A file of prompts."""

    prompts: str | None = option(None, "A text file with a prompt on each line.")


@dataclass(frozen=True, kw_only=True)
class ManyOptions(
    PromptFileOptions,
    EngineOptions,
    kinds={"prompts": Path | None},
    helps={"prompts": "A text file with a prompt on each line: a run of each, and a gallery."},
):
    """Many runs of `carv generate` in one command."""


@dataclass(frozen=True, kw_only=True)
class ViewOptions(Options):
    """A live view in the browser."""

    view: bool = option(False, "Serve the growing asset to a browser.")
    view_address: str = option("127.0.0.1", "The address that the view is bound to; any other lets others in.")
    view_port: int = option(8080, "Its port, or the next that is free.", least=1, most=65_000)


@dataclass(frozen=True, kw_only=True)
class DistillRequest(
    ModelOptions, CommandRequest, helps={"out": "The folder; unless given, outputs/distill-MODEL-SEED."}
):
    """What `carv distill` was asked for."""


@dataclass(frozen=True, kw_only=True)
class CleanOptions(Options):
    """Which runs `carv runs clean` removes."""

    state: tuple[Literal["stopped", "done", "damaged"], ...] = option(("stopped",), "Of which states.")
    yes: bool = option(False, "Remove them without a question.")
