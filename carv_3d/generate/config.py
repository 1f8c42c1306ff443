"""The built-in trainer's configuration: YAML in threestudio's key names, read strictly into dataclasses."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from carv_3d.config.annealing import Annealed, counts_steps
from carv_3d.config.reader import escaped, read_options, read_override, resolved, to_mapping
from carv_3d.config.request import TextOptions
from carv_3d.core.arguments import checked, described, refuse_text
from carv_3d.core.options import AdamOptions, Options, RunOptions, option
from carv_3d.errors import CarvError
from carv_3d.guidance.options import AUTO, GuidanceOptions, ViewPromptOptions
from carv_3d.io.files import MissingFileError
from carv_3d.io.structured import read_yaml
from carv_3d.runs.names import CONFIG
from carv_3d.runs.request import refuse_file
from carv_3d.scenes.cameras import CameraOptions
from carv_3d.scenes.fields import FIELDS, FieldOptions
from carv_3d.scenes.mesh import MeshOptions
from carv_3d.scenes.rendering import RenderOptions

CONFIGS = Path(__file__).parents[1] / "configs"  # the configurations that come with carv_3d
GROUPS = ("data", "system", "trainer", "checkpoint")  # of every configuration
OPAQUE_AT_END = 10.0  # lambda_opaque, which rises over the run
MAX_PROMPT = 2000  # characters; far beyond what any text encoder reads


@dataclass(frozen=True, kw_only=True)
class BackgroundOptions(Options):
    """What lies behind the object. White alone lets white floaters hide; a light color shows them."""

    random_probability: float = option(
        0.6, "Share of the steps with a random color; the others are white.", least=0, most=1
    )
    random_min: float = option(0.72, "Darkest gray of a random color.", least=0, most=1)
    random_tint: float = option(
        0.16, "How far a channel may fall below that gray; 0 is gray, 1 any color.", least=0, most=1
    )


def check_plain(name: str, text: str) -> None:
    """CarvError for a prompt that is too long, or no plain text; `name` is what it is called."""
    if len(text) > MAX_PROMPT:
        raise CarvError(f"{name} is longer than {MAX_PROMPT} characters; shorten it.")
    if any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n" for c in text):
        raise CarvError(f"{name} holds control characters or is no valid UTF-8: write plain text.")


@dataclass(frozen=True, kw_only=True)
class PromptOptions(TextOptions, ViewPromptOptions):
    """The prompt and how a camera's position is put into words; threestudio's names."""

    negative_prompt: str = option("", "What to avoid: the text of the unconditional half.")
    fine_views: bool = option(True, "Eight directions (front left view); false: threestudio's front, side and back.")
    use_perp_neg: bool = option(False, "Perp-Neg (arXiv 2304.04968): between directions, with the others as negatives.")
    overhead_threshold: float = option(60.0, "Degrees above which a view is overhead.", least=0, most=180)
    front_threshold: float = option(45.0, "Degrees from the front within which a view is one.", least=0, most=180)
    back_threshold: float = option(45.0, "Degrees from the back within which a view is one.", least=0, most=180)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_plain("the prompt", self.prompt)
        check_plain("negative_prompt", self.negative_prompt)
        if self.use_perp_neg:
            wrong = ["fine_views=false"] * self.fine_views
            wrong += ["view_dependent_prompting=true"] * (not self.view_dependent_prompting)
            if wrong:
                raise CarvError(f"use_perp_neg mixes front, side and back view: set {' and '.join(wrong)}.")


def factor(default: float, help: str) -> Any:
    """What a loss is multiplied by."""
    return option(default, help, least=0, most=1e9)


@dataclass(frozen=True, kw_only=True)
class LossOptions(Options):
    """What each loss is multiplied by; numbers or `carv_3d.config.annealing` schedules. 0 leaves a loss out.

    `loss_sds` is summed over the latent's elements and averaged over renders, the others are means.
    """

    lambda_sds: Annealed = factor(1.0, "Score distillation.")
    lambda_sds_img: Annealed = factor(0.01, "Score distillation in image space (use_img_loss alone).")
    lambda_recon: Annealed = factor(3000.0, "MSE(x, decode(encode(x))): keeps renders where the VAE is accurate.")
    lambda_density: Annealed = factor(0.5, "Mean density over the samples.")
    lambda_opacity: Annealed = factor(1.5, "Mean sqrt(opacity + 0.001): pulls at haze harder than at what is solid.")
    lambda_sparsity: Annealed = factor(0.0, "threestudio's, mean sqrt(opacity^2 + 0.01): pulls at all alike.")
    lambda_opaque: Annealed = factor(0.0, "threestudio's, mean binary entropy of the opacity: makes haze solid or air.")
    lambda_orient: Annealed = factor(0.0, "threestudio's, normals that point away from the camera.")
    lambda_z_variance: Annealed = factor(0.0, "threestudio's (HiFA), variance of the distance along a ray.")
    lambda_distortion: Annealed = factor(0.0, "Mip-NeRF 360's, distances of a ray's samples from each other.")
    lambda_tv: Annealed = factor(0.0, "Total variation of the voxel grid (voxel geometry alone).")


@dataclass(frozen=True, kw_only=True)
class OptimizerArgs(
    AdamOptions,
    defaults={"lr": None, "betas": (0.9, 0.99)},
    kinds={"lr": float | None},
    helps={
        "lr": "Learning rate; without one that of the geometry, 0.06 for voxel, 0.04 for fused, 0.01 for hash and tcnn."
    },
):
    """Passed to the torch optimizer."""

    eps: float = option(1e-15, "Added to the root of the second mean.", least=0, most=1)
    weight_decay: float = option(0.0, "Weight decay.", least=0, most=1000)


@dataclass(frozen=True, kw_only=True)
class NamedOptions(Options):
    """A choice by name."""

    name: str = option("", "Which one.")


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions(NamedOptions, defaults={"name": "Adam"}, kinds={"name": Literal["Adam", "AdamW"]}):
    """Which torch optimizer, and its arguments."""

    args: OptimizerArgs = option(OptimizerArgs, "Its arguments.")


@dataclass(frozen=True, kw_only=True)
class SchedulerOptions(
    NamedOptions, defaults={"name": "exponential"}, kinds={"name": Literal["exponential", "constant"]}
):
    """How the learning rate falls over the run."""

    final_factor: float = option(0.2, "exponential: the last learning rate over the first.", above=0, most=1)


@dataclass(frozen=True, kw_only=True)
class TrainerOptions(Options):
    """How long, and what is shown meanwhile."""

    max_steps: int = option(200, "Steps of the run.", least=1, most=10**9)
    val_check_interval: int = option(
        25, "Steps between two previews and two readings of the classifier.", least=1, most=10**9
    )
    step_seconds: float | None = option(
        None,
        "With num_draws=auto, what a step may take: R is then chosen with K, from data.batch_size on.",
        above=0,
        most=86_400,
    )


def _default_guidance() -> GuidanceOptions:
    steps = TrainerOptions.max_steps
    return GuidanceOptions(
        guidance_scale=2.0,
        max_step_percent=[0.98, 0.4, steps],
        trainer_max_steps=steps,
        num_draws=2,  # one antithetic pair measured best, see docs/results
        antithetic=True,
        use_recon_loss=True,
    )


def _default_geometry() -> FieldOptions:
    """Levels up to 101 cells along an edge: a render of 64 x 64 shows nothing finer, so finer ones would be rough."""
    return FieldOptions(n_levels=6)


def _default_loss() -> LossOptions:
    return LossOptions(lambda_opaque=[0.0, OPAQUE_AT_END, TrainerOptions.max_steps])


@dataclass(frozen=True, kw_only=True)
class SystemOptions(Options):
    """The scene, the teacher and what is minimized."""

    geometry_type: str = option(
        "auto",
        "The field; auto: tcnn on CUDA with tinycudann, fused on a CPU with numba, else voxel.",
        choices=("auto", *FIELDS),
    )
    geometry: FieldOptions = option(_default_geometry, "Of the field.")
    renderer: RenderOptions = option(RenderOptions, "Of the volume renderer.")
    background: BackgroundOptions = option(BackgroundOptions, "What lies behind the object.")
    prompt_processor: PromptOptions = option(PromptOptions, "The prompt and its views.")
    guidance: GuidanceOptions = option(_default_guidance, "Of score distillation.")
    loss: LossOptions = option(_default_loss, "What each loss is multiplied by.")
    optimizer: OptimizerOptions = option(OptimizerOptions, "Which torch optimizer.")
    scheduler: SchedulerOptions = option(SchedulerOptions, "How the learning rate falls.")
    exporter: MeshOptions = option(MeshOptions, "How the mesh is made.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for group in (self.guidance, self.loss):
            for name, value in vars(group).items():
                texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
                if isinstance(value, list) and not texts and not counts_steps(value):
                    raise CarvError(
                        f"{name} is {value}: an end with a decimal point counts epochs, and a run here has none; "
                        "write whole steps (trainer.max_steps too, without a point or an exponent)."
                    )


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions(Options):
    """How often the run's state is saved."""

    every_n_train_steps: int = option(25, "Steps between two checkpoints.", least=1, most=10**9)


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


@dataclass(frozen=True, kw_only=True)
class Config(RunOptions):
    """Everything a run depends on. `data` and `system` are threestudio's groups."""

    data: CameraOptions = option(_default_data, "The cameras.")
    system: SystemOptions = option(SystemOptions, "The scene, the teacher and what is minimized.")
    trainer: TrainerOptions = option(TrainerOptions, "How long.")
    checkpoint: CheckpointOptions = option(CheckpointOptions, "How often the state is saved.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trainer.step_seconds is not None and self.system.guidance.num_draws != AUTO:
            raise CarvError(
                f"trainer.step_seconds is {self.trainer.step_seconds}, which is for num_draws: {AUTO}, and num_draws "
                f"is {self.system.guidance.num_draws}: set system.guidance.num_draws={AUTO}, or leave step_seconds out."
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
        },
        "loss": {"lambda_opaque": [0.0, OPAQUE_AT_END, "${trainer.max_steps}"]},
    },
}


@checked
def load_config(
    path: Path | str | None = None,
    overrides: Sequence[str] = (),
    prompt: str = "",
    seed: int | None = None,
) -> Config:
    """The resolved configuration: the defaults, then the file, then the overrides, then prompt and seed.

    Args:
        path: a YAML file, or the name of one in `carv_3d/configs`; `${...}` in it (and in the overrides) is resolved
            after all have been merged.
        overrides: "system.guidance.num_draws=8", "num_draws=8" and the like, see `read_override`.
        prompt: taken literally; empty for the configuration's.
        seed: in place of the configuration's.

    Raises:
        CarvError: in one sentence, for a file that cannot be read and for every unknown or bad option.
    """
    refuse_text("overrides", overrides)
    if not isinstance(prompt, str):
        raise CarvError(f"prompt is {described(prompt)}; it must be text, '' for the configuration's.")
    if path is not None and not str(path).strip():
        raise CarvError(f"path is {described(path)}, which names no file; give a YAML file, or None for the defaults.")
    config = _merged({} if path is None else _read_yaml(find_config(Path(path))), overrides, seed)
    if prompt:
        config = read_options(config, {"system": {"prompt_processor": {"prompt": prompt}}})
    return config


def _merged(file: Any, overrides: Sequence[str], seed: int | None = None) -> Config:
    """The defaults, then a file's groups, unresolved, then the overrides and the seed."""
    defaults = Config()
    values = resolved("the configuration", BASE, file, *(read_override(word, defaults) for word in overrides))
    if seed is not None:
        values["seed"] = seed
    return config_from(values)


def load_run(folder: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of the run in a folder. A run writes all options, so what is absent was lost.

    Raises:
        CarvError: a file in place of the folder; no config.yaml, one that is empty or lacks a group, or one that cannot
            be read.
    """
    refuse_file(folder)
    path = folder / CONFIG
    values = read_yaml(path, "restore it, which says what the run is, or name another run")
    lacks = next((group for group in GROUPS if not values.get(group)), None)
    if lacks is not None:
        state = f"has nothing under {lacks}" if values else "is empty"
        raise CarvError(f"{path} {state}, so it is not what carv generate wrote; restore it, or name another run")
    try:
        return _merged(values, overrides)
    except CarvError:
        _check_alone(path, values)
        raise


def _check_alone(path: Path, values: Any) -> None:
    """CarvError that names the file where its own values are wrong, and no override is."""
    try:
        _merged(values, ())
    except CarvError as error:
        raise CarvError(f"{path}: {str(error).rstrip('.')}; restore it, or name another run") from error


def settled(config: Config, field: str) -> Config:
    """A configuration with what a run settles itself, as its config.yaml has it.

    Args:
        config: as it was asked for.
        field: the kind that "auto" is, a name of `FIELDS`; "auto" where it is not known, which settles nothing.

    Returns:
        The field in place of "auto", and that field's learning rate where none is named.
    """
    system = config.system
    kind = field if system.geometry_type == "auto" else system.geometry_type
    if kind == "auto":
        return config
    args = system.optimizer.args
    rate = FIELDS[kind].learning_rate if args.lr is None else args.lr
    optimizer = replace(system.optimizer, args=replace(args, lr=rate))
    return replace(config, system=replace(system, geometry_type=kind, optimizer=optimizer))


def find_config(path: Path) -> Path:
    """A configuration that comes with carv_3d where `path` is its name, `path` itself otherwise.

    `configs/NAME.yaml`, where they were in 0.1, is such a name too.
    """
    shipped = CONFIGS / f"{path.stem}.yaml"
    is_name = path.parent in (Path(), Path("configs")) and path.suffix in ("", ".yaml")
    return shipped if is_name and not path.exists() and shipped.exists() else path


def _read_yaml(path: Path) -> Any:
    """A YAML file's groups, unresolved; CarvError in one sentence for any mistake in it."""
    try:
        return read_yaml(path, "correct it, or name another file")
    except MissingFileError:
        places = [*path.parent.glob("*.yaml"), *(Path(p.stem) for p in CONFIGS.glob("*.yaml"))]
        near = difflib.get_close_matches(path.name, [p.name for p in places], 1)
        hint = f"; did you mean {next(p for p in places if p.name == near[0])}?" if near else ""
        raise CarvError(f"there is no config file {path}{hint}") from None


def config_to_yaml(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back to the same, `${` in a prompt included."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(escaped(to_mapping(config))))
