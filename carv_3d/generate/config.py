"""The embedded host's configuration: YAML in threestudio's key names, read strictly into dataclasses."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from carv_3d.config.annealing import Annealed, annealed_values, check_annealed, counts_steps
from carv_3d.config.reader import at_least, one_of, read_options, read_override, resolved, to_mapping
from carv_3d.core.devices import DEVICES
from carv_3d.errors import CarvError
from carv_3d.guidance.options import AUTO, GuidanceOptions
from carv_3d.io.structured import MissingFileError, read_yaml
from carv_3d.scenes.cameras import CameraOptions
from carv_3d.scenes.fields import FIELDS, FieldOptions
from carv_3d.scenes.mesh import MeshOptions
from carv_3d.scenes.rendering import RenderOptions

OPTIMIZERS = ("Adam", "AdamW")
SCHEDULERS = ("exponential", "constant")
MAX_PROMPT = 2000  # characters; far beyond what any text encoder reads


@dataclass
class BackgroundOptions:
    """What lies behind the object. White alone lets white floaters hide; a light color shows them."""

    random_probability: float = 0.6  # share of the steps with a random color; the others are white
    random_min: float = 0.72  # its darkest grey, in [0, 1]
    random_tint: float = 0.16  # how far a channel may fall below that grey; 0 is grey, 1 any color

    def __post_init__(self) -> None:
        for name in ("random_probability", "random_min", "random_tint"):
            if not 0 <= getattr(self, name) <= 1:
                raise CarvError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")


@dataclass
class PromptOptions:
    """The prompt and how a camera's position is put into words; threestudio's names."""

    prompt: str = ""
    negative_prompt: str = ""
    view_dependent_prompting: bool = True
    fine_views: bool = True  # eight directions ("front left view"); false: threestudio's front, side, back
    use_perp_neg: bool = False  # Perp-Neg (arXiv 2304.04968): between front, side and back, the others pushed away
    overhead_threshold: float = 60.0  # degrees
    front_threshold: float = 45.0
    back_threshold: float = 45.0

    def __post_init__(self) -> None:
        if len(self.prompt) > MAX_PROMPT or len(self.negative_prompt) > MAX_PROMPT:
            raise CarvError(f"the prompt is longer than {MAX_PROMPT} characters; shorten it")
        for text in (self.prompt, self.negative_prompt):
            if any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n" for c in text):
                raise CarvError("the prompt holds control characters or is no valid UTF-8: write plain text")
        if self.use_perp_neg:
            wrong = ["fine_views=false"] * self.fine_views
            wrong += ["view_dependent_prompting=true"] * (not self.view_dependent_prompting)
            if wrong:
                raise CarvError(f"use_perp_neg mixes front, side and back view: set {' and '.join(wrong)}")
        for name in ("overhead_threshold", "front_threshold", "back_threshold"):
            if not 0 <= getattr(self, name) <= 180:
                raise CarvError(f"{name} is {getattr(self, name)}; it must lie between 0 and 180 degrees")


@dataclass
class LossOptions:
    """What each loss is multiplied by; numbers or `carv_3d.config.annealing` schedules. 0 leaves a loss out.

    `loss_sds` is summed over the latent's elements and averaged over renders, the others are means.
    """

    lambda_sds: Annealed = 1.0
    lambda_sds_img: Annealed = 0.01  # in image space, with system.guidance.use_img_loss alone
    lambda_recon: Annealed = 1000.0  # MSE(x, decode(encode(x))): keeps renders where the VAE is at home
    lambda_density: Annealed = 20.0  # mean density over the samples
    lambda_opacity: Annealed = 50.0  # mean sqrt(opacity + 0.001): pulls at haze harder than at what is solid
    lambda_sparsity: Annealed = 0.0  # threestudio's, mean sqrt(opacity^2 + 0.01): pulls at all alike
    lambda_opaque: Annealed = 0.0  # threestudio's: mean binary entropy of the opacity
    lambda_orient: Annealed = 0.0  # threestudio's: normals that point away from the camera
    lambda_tv: Annealed = 0.0  # total variation of the voxel grid (voxel geometry alone)

    def __post_init__(self) -> None:
        for name in vars(self):
            value = check_annealed(name, getattr(self, name))
            if min(annealed_values(value)) < 0:
                raise CarvError(f"{name} is {value}; what a loss is multiplied by is at least 0")
            setattr(self, name, value)


@dataclass
class OptimizerArgs:
    """Passed to the torch optimizer."""

    lr: float = 0.06
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-15
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise CarvError(f"lr is {self.lr}; it must be above 0")
        at_least(self, 0, "eps", "weight_decay")
        if not all(0 <= b < 1 for b in self.betas):
            raise CarvError(f"betas are {list(self.betas)}; each must be at least 0 and below 1")


@dataclass
class OptimizerOptions:
    """Which torch optimizer, and its arguments."""

    name: str = "Adam"
    args: OptimizerArgs = field(default_factory=OptimizerArgs)

    def __post_init__(self) -> None:
        one_of(self, "name", OPTIMIZERS)


@dataclass
class SchedulerOptions:
    """How the learning rate falls over the run: exponential, to `final_factor` of itself, or constant."""

    name: str = "exponential"
    final_factor: float = 0.2

    def __post_init__(self) -> None:
        one_of(self, "name", SCHEDULERS)
        if not 0 < self.final_factor <= 1:
            raise CarvError(f"final_factor is {self.final_factor}; it must be above 0 and at most 1")


@dataclass
class TrainerOptions:
    """How long, and what is shown meanwhile."""

    max_steps: int = 300
    val_check_interval: int = 25  # steps between two previews (progress.png) and two readings of the classifier
    step_seconds: float | None = None
    """With num_draws: auto, what a step may take: R is then chosen with K, from data.batch_size on."""

    def __post_init__(self) -> None:
        at_least(self, 1, "max_steps", "val_check_interval")
        if self.step_seconds is not None and not 0 < self.step_seconds < float("inf"):
            raise CarvError(f"step_seconds is {self.step_seconds}; it must be above 0, or null for a fixed batch_size")


def _default_guidance() -> GuidanceOptions:
    steps = TrainerOptions.max_steps
    return GuidanceOptions(
        guidance_scale=3.5,
        max_step_percent=[0.98, 0.4, steps],
        trainer_max_steps=steps,
        num_draws=2,  # one antithetic pair measured best, see docs/results
        antithetic=True,
        use_recon_loss=True,
    )


@dataclass
class SystemOptions:
    """The scene, the teacher and what is minimised."""

    geometry_type: str = "auto"
    geometry: FieldOptions = field(default_factory=FieldOptions)
    renderer: RenderOptions = field(default_factory=RenderOptions)
    background: BackgroundOptions = field(default_factory=BackgroundOptions)
    prompt_processor: PromptOptions = field(default_factory=PromptOptions)
    guidance: GuidanceOptions = field(default_factory=_default_guidance)
    loss: LossOptions = field(default_factory=LossOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)
    exporter: MeshOptions = field(default_factory=MeshOptions)

    def __post_init__(self) -> None:
        one_of(self, "geometry_type", ("auto", *FIELDS))
        for group in (self.guidance, self.loss):
            for name, value in vars(group).items():
                if isinstance(value, list) and not counts_steps(value):
                    raise CarvError(
                        f"{name} is {value}: an end with a decimal point counts epochs, and a run here has none; "
                        "write whole steps (trainer.max_steps too, without a point or an exponent)"
                    )


@dataclass
class CheckpointOptions:
    """How often the run's state is saved."""

    every_n_train_steps: int = 25

    def __post_init__(self) -> None:
        at_least(self, 1, "every_n_train_steps")


def _default_data() -> CameraOptions:
    """The cameras of carv-tiny's training images, so that the object fills the frame as it did there."""
    return CameraOptions(
        elevation_range=(-10.0, 45.0),
        camera_distance_range=(2.5, 3.0),
        fovy_range=(36.0, 42.0),
        eval_height=192,
        eval_width=192,
        eval_elevation_deg=20.0,
        eval_camera_distance=2.75,
        eval_fovy_deg=39.0,
        n_test_views=48,
    )


@dataclass
class Config:
    """Everything a run depends on. `data` and `system` are threestudio's groups."""

    seed: int = 0
    device: str = "auto"
    data: CameraOptions = field(default_factory=_default_data)
    system: SystemOptions = field(default_factory=SystemOptions)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise CarvError(f"seed is {self.seed}; it must be at least 0 and below 2^63")
        one_of(self, "device", DEVICES)
        if self.trainer.step_seconds is not None and self.system.guidance.num_draws != AUTO:
            raise CarvError(
                f"trainer.step_seconds is {self.trainer.step_seconds}, which is for num_draws: {AUTO}, and num_draws "
                f"is {self.system.guidance.num_draws}: set system.guidance.num_draws={AUTO}, or leave step_seconds out"
            )

    @property
    def prompt(self) -> str:
        """The prompt, as it was given."""
        return self.system.prompt_processor.prompt


def config_from(values: Mapping[str, Any]) -> Config:
    """A `Config` from a nested mapping; CarvError names what is unknown or out of range."""
    return read_options(Config(), values)


# Under every configuration: what follows from another value unless it is given itself.
BASE: dict[str, Any] = {
    "trainer": {"max_steps": TrainerOptions.max_steps},
    "system": {
        "guidance": {
            "max_step_percent": [0.98, 0.4, "${trainer.max_steps}"],
            "trainer_max_steps": "${trainer.max_steps}",
        }
    },
}


def load_config(
    path: Path | None = None,
    overrides: Sequence[str] = (),
    prompt: str | None = None,
    seed: int | None = None,
) -> Config:
    """The resolved configuration: the defaults, then the file, then the overrides, then prompt and seed.

    Args:
        path: a YAML file; `${...}` in it (and in the overrides) is resolved after all have been merged.
        overrides: "system.guidance.num_draws=8" and the like; the value is read as YAML.
        prompt: taken literally.
        seed: of everything that is drawn.

    Raises:
        CarvError: in one sentence, for a file that cannot be read and for every unknown or bad option.
    """
    parts = [BASE, *([_read_yaml(path)] if path else []), *map(read_override, overrides)]
    values = resolved("the configuration", *parts)
    if seed is not None:
        values["seed"] = seed
    config = config_from(values)
    if prompt is not None:
        config.system.prompt_processor = replace(config.system.prompt_processor, prompt=prompt)
    return config


def _read_yaml(path: Path) -> Any:
    """A YAML file's groups, unresolved; CarvError in one sentence for any mistake in it."""
    try:
        return read_yaml(path, "correct it, or name another file")
    except MissingFileError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise CarvError(f"there is no config file {path}{hint}") from None


def config_to_yaml(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back to the same, `${` in a prompt included."""
    from omegaconf import OmegaConf

    def safe(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: safe(v) for k, v in value.items()}
        if isinstance(value, list):
            return [safe(v) for v in value]
        if isinstance(value, str):  # backslashes before "${" escape it, and each other
            return re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", value)
        return value

    return OmegaConf.to_yaml(OmegaConf.create(safe(to_mapping(config))))
