"""What `carv variance` is asked for, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from carv_3d.config.request import MeasureRequest, TextOptions
from carv_3d.core.options import option
from carv_3d.errors import CarvError
from carv_3d.variance.methods import BASELINE, DEFAULT, Setting, method

MOST_STEPS = 64  # an image has a panel for each, and 65,536 pixels at most
MOST_SETTINGS = 512


@dataclass(frozen=True, kw_only=True)
class VarianceRequest(
    TextOptions,
    MeasureRequest,
    helps={
        "prompt": "The prompt, where the configuration has none.",
        "out": "The folder; unless given, outputs/variance-PROMPT.",
    },
):
    """What `carv variance` was asked for."""

    source: Path
    at: tuple[int, ...] = option(
        (),
        "Steps of the run to measure at; by default 10, 50 and 90 %, or a run's end.",
        least=0,
        most=10**9,
    )
    R: tuple[int, ...] = option((1,), "R, renders of a step.", least=1, most=1024)
    K: tuple[int, ...] = option((1, 2, 4, 8), "K, draws per render.", least=1, most=1024)
    methods: tuple[str, ...] = option(DEFAULT, "Estimators by name.")
    tolerance: float = option(0.1, "Relative error of every cost at which measuring stops.", above=0, below=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("R", "K"):
            self._set(name, tuple(sorted(set(getattr(self, name)))))
        if len(set(self.at)) > MOST_STEPS:
            raise CarvError(f"--at names {len(set(self.at))} steps; name {MOST_STEPS} at most, as each has a panel.")

    def _refuse_same(self) -> None:
        """CarvError for two names of one estimator, such as is+strat and strat+is: it would be measured twice."""
        by_options: dict[str, str] = {}
        for m in map(method, dict.fromkeys(self.methods)):
            first, name = by_options.setdefault(repr([sorted(m.guidance.items()), m.data]), m.name), m.name
            if first != name:
                raise CarvError(f"--methods names one estimator twice, {first} and {name}; name it once.")

    def settings(self) -> list[Setting]:
        """The baseline first.

        Odd K are left out for pairs, and R = 1 for cameras in a sequence: one such camera is as any random one, and R
        of them in a step are what R steps of one have.

        Raises:
            CarvError: a method is left with no (R, K).
        """
        self._refuse_same()
        out = [BASELINE]
        for m in map(method, dict.fromkeys(self.methods)):
            places = [(R, K) for R in self.R for K in self.K if m.takes(R, K)]
            if not places and not any(m.takes(R, 2) for R in self.R):
                raise CarvError(f"the method {m.name} spreads the cameras of a step: give --renders of 2 or 4.")
            if not places:
                raise CarvError(f"the method {m.name} draws in pairs: give an even number of --draws.")
            out += [Setting(R, K, m) for R, K in places]
        settings = list({s.key: s for s in out}.values())
        if len(settings) > MOST_SETTINGS:
            raise CarvError(
                f"--methods, --renders and --draws make {len(settings):,} settings, all of which are measured in each "
                f"batch; name fewer, for {MOST_SETTINGS} at most."
            )
        return settings
