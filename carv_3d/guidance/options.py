"""The options of score distillation, under threestudio's names where it has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

from torch import Tensor

from carv_3d.config.annealing import Annealed, annealed, counts_steps, knots
from carv_3d.core.estimator import EstimatorOptions
from carv_3d.core.options import (
    WEIGHTINGS_HELP,
    Options,
    ResidualOptions,
    SamplingOptions,
    SeedOptions,
    StepOptions,
    Weighting,
    WeightingOptions,
    option,
    unknown_option,
)
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError
from carv_3d.guidance.cfg import CfgConvention
from carv_3d.guidance.checks import MOST_STEPS, whole_step
from carv_3d.objectives.table import OBJECTIVES, Objective, PlainObjective

AUTO = "auto"
Some = TypeVar("Some", bound="GuidanceOptions")


class Annealing(NamedTuple):
    """The annealed options at one step: `guidance_scale`, the first and last timestep, and `grad_clip`."""

    guidance_scale: float
    min_step: int
    max_step: int
    grad_clip: float | None


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(SamplingOptions):
    """Draws, and the teacher's score at them."""

    guidance_scale: Annealed = option(
        100.0, "How strongly the text pulls; in carv_3d's guidance see cfg_convention.", least=-1e6, most=1e6
    )
    min_step_percent: Annealed = option(
        0.02, "The smallest timestep, as a share of the teacher's T: int(T min).", least=0, most=1
    )
    max_step_percent: Annealed = option(
        0.98, "The largest timestep, included, as a share of T: min(int(T max), T - 1).", least=0, most=1
    )
    objective: str = option("sds", "What is distilled, see `carv_3d.objectives`.", choices=OBJECTIVES)

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.min_step_percent, self.max_step_percent
        if counts_steps(low) != counts_steps(high) and not (isinstance(low, float) or isinstance(high, float)):
            return  # one counts steps, the other epochs: `timestep_range` looks at every step
        ends = [end for value in (low, high) if not isinstance(value, float) for end in knots(value)[0]]
        for end in [0.0, *ends]:
            least, most = (annealed(value, end, end) for value in (low, high))
            if least > most:  # both are linear between the ends, so the ends are enough
                when = f" at {end:g}" if ends else ""
                raise CarvError(
                    f"min_step_percent ({least:g}) is above max_step_percent ({most:g}){when}: "
                    "set them so that the first is never the larger."
                )

    def timestep_range(self, num_train_timesteps: int, step: int, epoch: int = 0) -> tuple[int, int]:
        """The smallest and largest timestep at a step, both included, within [0, T - 1].

        Args:
            num_train_timesteps: T.
            step: counted from 0.
            epoch: the same, for schedules that count epochs.

        Raises:
            CarvError: if the schedules have crossed, or where step or epoch is no whole number from 0 to 2^53.
        """
        if type(step) is not int or type(epoch) is not int or min(step, epoch) < 0 or max(step, epoch) > MOST_STEPS:
            step, epoch = whole_step("step", step), whole_step("epoch", epoch)
        low, high = self._shares(step, epoch)
        if low > high:
            raise CarvError(f"min_step_percent ({low:g}) is above max_step_percent ({high:g}) at step {step}.")
        last = num_train_timesteps - 1
        return min(int(num_train_timesteps * low), last), min(int(num_train_timesteps * high), last)

    def _shares(self, step: int, epoch: int) -> tuple[float, float]:
        return annealed(self.min_step_percent, step, epoch), annealed(self.max_step_percent, step, epoch)


@dataclass(frozen=True, kw_only=True)
class ViewPromptOptions(Options):
    """Prompts that say where the camera is."""

    view_dependent_prompting: bool = option(True, "Add the camera's direction to the prompt.")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """Which diffusion model, and from what files."""

    pretrained_model_name_or_path: str = option(
        "carv-tiny",
        "carv-tiny, carv-tiny-128, a local diffusers folder, a hub id, or one .safetensors file of Stable Diffusion 1, "
        "2 or XL.",
    )
    model_config: str | None = option(
        None,
        "Of a single file: a diffusers folder with its configurations and tokenizers. null: those in the hub's cache.",
    )
    vae: str | None = option(None, "Another VAE for the model: its folder or .safetensors file. null: its own.")
    loras: list[str] | None = option(
        None, "LoRA adapters that are added to the model's weights, FILE.safetensors:SCALE each. null: none."
    )

    @property
    def model_files(self) -> dict[str, Any]:
        """The files besides the model's own, as `LatentDiffusionTeacher.load` takes them."""
        return {"model_config": self.model_config, "vae": self.vae, "loras": self.loras}


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions(
    ModelOptions,
    ScoreOptions,
    ResidualOptions,
    SeedOptions,
    defaults={"seed": None},
    kinds={
        "seed": int | None,
        "grad_clip": Annealed | None,
        "objective": PlainObjective,
    },
    helps={
        "objective": "What is distilled, see `carv_3d.objectives`. sds: w (guided - eps). sjc: guided - eps; "
        "sjc_plain: guided. hifa: sds, and loss_sds_img, a loss in image space for which every draw is decoded. "
        "csd: w (text - uncond), without a guidance scale. nfsd: noise-free; it needs a negative prompt."
    },
):
    """What score distillation is given. A schedule is a list as in threestudio, see `carv_3d.config.annealing`.

    Raises:
        CarvError: naming the option, for a value that cannot be meant.
    """

    half_precision_weights: bool = option(True, "float16 on CUDA; on the CPU always float32.")
    cfg_convention: CfgConvention = option(
        "standard",
        "standard: uncond + s (text - uncond). threestudio: text + s (text - uncond), the former at s + 1.",
    )
    sqrt_anneal: bool = option(
        False,
        "One timestep for all draws, from max_step_percent to min_step_percent with the square root of progress over "
        "trainer_max_steps; then it stays. As in threestudio, of a max_step_percent that is a list the second entry "
        "counts: v1 of [v0, v1, end], v0 of [start, v0, v1, end].",
    )
    trainer_max_steps: int = option(25000, "Steps over which sqrt_anneal runs.", least=1, most=10**9)
    weighting_strategy: Weighting = option("sds", WEIGHTINGS_HELP)
    use_sjc: bool = option(False, "threestudio's name for objective sjc.")
    var_red: bool = option(
        True, "threestudio's; false with use_sjc: objective sjc_plain, the same in expectation and noisier."
    )
    use_img_loss: bool = option(False, "threestudio's name for objective hifa.")
    vae_sample: Literal["sample", "mode", "draw"] | bool = option(
        True,
        "true or sample: one posterior sample per render. false or mode: the posterior's mode. draw: one posterior "
        "sample per draw, from one encoding of its render; the same in expectation as sample.",
    )
    use_recon_loss: bool = option(
        False, "Also return loss_recon = MSE(rgb, decode(encode(rgb))); nothing is decoded otherwise."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.vae_sample, bool):
            self._set("vae_sample", "sample" if self.vae_sample else "mode")
        self._name_objective()
        refused = {"num_draws": AUTO, "proposal": "adaptive", "control_variate": True}
        refused["objective"] = self._image_objective
        for name, bad in refused.items():
            if self.vae_sample == "draw" and getattr(self, name) == bad:
                shown = str(bad).lower()
                raise CarvError(f"vae_sample is draw, which does not go with {name}: {shown}; change one of the two.")

    @property
    def _image_objective(self) -> str:
        """The objective of the class with a loss in image space."""
        return next(name for name in self.declared()["objective"].choices if OBJECTIVES[name].image)

    def _name_objective(self) -> None:
        """Turn the flags of threestudio into an objective; from here on the objective alone says what is distilled."""
        if self.use_sjc and self.use_img_loss:
            raise CarvError("use_img_loss belongs to score distillation: set use_sjc or use_img_loss to false.")
        plain, image = self.declared()["objective"].default, self._image_objective
        flagged = image if self.use_img_loss else "sjc" if self.var_red else "sjc_plain"
        if self.use_sjc or self.use_img_loss:
            if self.objective not in (plain, flagged):
                flag = "use_sjc" if self.use_sjc else "use_img_loss"
                raise CarvError(f"{flag} means objective {flagged}, and objective is {self.objective}: leave one out.")
            self._set("objective", flagged)
        for name, value in (("use_sjc", False), ("var_red", True), ("use_img_loss", False)):
            self._set(name, value)
        if self.distilled.weight is not None and self.weighting_strategy != "sds":
            raise CarvError(
                f"objective {self.objective} has no w(t), so weighting_strategy {self.weighting_strategy} would be "
                "ignored: leave it out."
            )

    @property
    def distilled(self) -> Objective:
        """The objective that the options name."""
        return OBJECTIVES[self.objective]

    def weights(self, schedule: NoiseSchedule) -> Tensor:
        """w(t) as it multiplies the residual, over all timesteps (T,); CarvError for a `ContinuousSchedule`."""
        if schedule.continuous:
            raise CarvError(
                "guidance draws whole timesteps alone, and the teacher's schedule is a ContinuousSchedule: use "
                "sds_loss or a CarvEstimator with it."
            )
        return self.distilled.weights(schedule, self.weighting_strategy)

    def at(self, num_train_timesteps: int, step: int, epoch: int = 0) -> Annealing:
        """The annealed options at a step.

        Args:
            num_train_timesteps: T.
            step: counted from 0.
            epoch: the same, for schedules that count epochs.

        Raises:
            CarvError: as `timestep_range`.
        """
        low, high = self.timestep_range(num_train_timesteps, step, epoch)
        clip = None if self.grad_clip is None else annealed(self.grad_clip, step, epoch)
        return Annealing(annealed(self.guidance_scale, step, epoch), low, high, clip)

    def _shares(self, step: int, epoch: int) -> tuple[float, float]:
        progress = self._progress(step)
        low, high = super()._shares(step, epoch)
        if progress is not None:
            most = self.max_step_percent
            top = float(most) if isinstance(most, (int, float)) else float(most[1])
            low = high = low + (top - low) * (1.0 - progress)
        return low, high

    def _progress(self, step: int) -> float | None:
        """Where the one timestep is between max_step_percent (0) and min_step_percent (1); None: all between."""
        return min(max(step / self.trainer_max_steps, 0.0), 1.0) ** 0.5 if self.sqrt_anneal else None


def with_keywords(owner: str, options: Some, given: Mapping[str, Any]) -> tuple[Some, dict[str, Any]]:
    """The options with those of the keywords that their class declares, and the rest, which is the estimator's.

    Args:
        owner: the class that was called, for messages.
        options: the options.
        given: keywords.

    Raises:
        CarvError: naming a keyword that is neither, with the nearest one that is.
    """
    own = options.declared()
    under_other_names = {**StepOptions.declared(), **WeightingOptions.declared()}
    known = [*own, *(name for name in EstimatorOptions.declared() if name not in under_other_names)]
    for name in given:
        if name not in known:
            raise unknown_option(owner, name, known, options.renamed)
    declared = {name: value for name, value in given.items() if name in own}
    rest = {name: value for name, value in given.items() if name not in own}
    return (replace(options, **declared) if declared else options), rest
