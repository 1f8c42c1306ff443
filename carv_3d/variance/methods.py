"""What `carv variance` measures: estimators by name, and the sizes of the steps that they are measured in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from carv_3d.core import estimator_names
from carv_3d.core.estimator_names import Word, estimator_options

# the library's words, and two of the trainer's options: the encoder's posterior, the cameras
WORDS: dict[str, Word] = {
    **estimator_names.WORDS,
    "vae": Word("vae_sample", "draw", "a posterior sample of the encoder for each draw"),
    "cameras": Word("camera_sampling", "low_discrepancy", "cameras spread evenly over R and over steps; R from 2"),
    "antipodal": Word("camera_sampling", "antipodal", "cameras in pairs on opposite sides; R is even"),
}
DEFAULT = ("uniform", "is", "strat", "is+strat")
LEARNING = ("adaptive", "control")  # words of methods that need steps to learn from


@dataclass(frozen=True)
class Method:
    """One estimator: options over those of the run."""

    name: str
    guidance: dict[str, Any] = field(hash=False)
    data: dict[str, Any] = field(hash=False)

    @property
    def words(self) -> list[str]:
        """The parts of its name."""
        return self.name.split("+")

    @property
    def antithetic(self) -> bool:
        """Whether its draws come in pairs."""
        return "antithetic" in self.words

    @property
    def learns(self) -> bool:
        """Whether it learns from earlier steps."""
        return not set(LEARNING).isdisjoint(self.words)

    @property
    def cameras(self) -> str:
        """How the cameras of a step are drawn, one of `CAMERA_SAMPLINGS`."""
        return str(self.data["camera_sampling"])

    def takes(self, R: int, K: int) -> bool:
        """Whether a step may have R renders of K draws: pairs need an even number, a sequence two at least."""
        if self.antithetic and K % 2:
            return False
        return {"antipodal": R % 2 == 0, "low_discrepancy": R >= 2}.get(self.cameras, True)

    @property
    def samples_posterior(self) -> bool:
        """Whether each draw has its own posterior sample of the encoder."""
        return "vae" in self.words


def method(name: str) -> Method:
    """The method of that name; CarvError, with the nearest word, for one that does not exist."""
    options = {**estimator_names.PLAIN, **estimator_options(name, WORDS)}
    data = {"camera_sampling": options.pop("camera_sampling", "random")}
    return Method(name, options, data)


@dataclass(frozen=True)
class Setting:
    """One method in a step of R renders with K draws each."""

    R: int
    K: int
    method: Method

    @property
    def key(self) -> str:
        """A name of its own."""
        return f"{self.R},{self.K},{self.method.name}"

    @property
    def upstream(self) -> str:
        """A name of its upstream sample: settings that share it are measured on the same renders and latents."""
        cameras = {"random": "0", "low_discrepancy": "1"}.get(self.method.cameras, self.method.cameras)
        return f"{self.R},{cameras},{int(self.method.samples_posterior)}"


BASELINE = Setting(2, 1, method("uniform"))
