"""The options of score distillation, under threestudio's names where it has them, checked when read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from carv_3d.config.annealing import Annealed, annealed, annealed_values, check_annealed, counts_steps, knots
from carv_3d.core.designs import STRATIFY
from carv_3d.core.proposals import PROPOSALS
from carv_3d.core.schedule import WEIGHTINGS, NoiseSchedule
from carv_3d.errors import CarvError
from carv_3d.guidance.cfg import CFG_CONVENTIONS
from carv_3d.objectives.table import OBJECTIVES

AUTO = "auto"
VAE_SAMPLES = ("sample", "mode", "draw")
FLAGS = (
    "antithetic", "control_variate", "sqrt_anneal", "half_precision_weights", "use_recon_loss", "use_sjc", "var_red",
    "use_img_loss",
)  # fmt: skip
ANNEALED = ("guidance_scale", "min_step_percent", "max_step_percent", "grad_clip")


class Annealing(NamedTuple):
    """The annealed options at one step: `guidance_scale`, the first and last timestep, and `grad_clip`."""

    guidance_scale: float
    min_step: int
    max_step: int
    grad_clip: float | None


@dataclass
class GuidanceOptions:
    """The options of score distillation. "Annealed" values may be `C()` schedules, see `carv_3d.config.annealing`.

    Raises CarvError, naming the option, for a value that cannot be meant.
    """

    objectives: ClassVar[tuple[str, ...]] = ("sds", "sjc", "sjc_plain", "hifa", "csd", "nfsd")
    _image_objective: ClassVar[str] = "hifa"

    pretrained_model_name_or_path: str = "carv-tiny"
    """carv-tiny, a local diffusers folder, or a hub id."""
    half_precision_weights: bool = True
    """float16 on CUDA; on the CPU always float32."""

    guidance_scale: Annealed = 100.0
    """Annealed. How strongly the text pulls, read by `cfg_convention`."""
    cfg_convention: str = "standard"
    """standard: uncond + s (text - uncond). threestudio: text + s (text - uncond), the former at s + 1."""
    min_step_percent: Annealed = 0.02
    """Annealed. Timesteps are the integers from int(T min) ..."""
    max_step_percent: Annealed = 0.98
    """Annealed. ... to min(int(T max), T - 1), both included."""
    sqrt_anneal: bool = False
    """One timestep for all draws, from max_step_percent to min_step_percent with the square root of progress, over
    `trainer_max_steps`; it stays at the minimum from there on. As in threestudio, a max_step_percent that is a
    list gives its second entry: v1 of [v0, v1, end], v0 of [start, v0, v1, end]."""
    trainer_max_steps: int = 25000
    objective: str = "sds"
    """What is distilled, see `carv_3d.objectives`. sds: w (guided - eps). sjc: guided - eps; sjc_plain: guided.
    hifa: sds, and loss_sds_img, a loss in image space for which every draw is decoded. csd: w (text - uncond), without
    a guidance scale. nfsd: noise-free; it needs a negative prompt."""
    weighting_strategy: str = "sds"
    """w(t). sds: 1 - abar; uniform: 1; fantasia3d: sqrt(abar) (1 - abar). sjc has none."""
    use_sjc: bool = False
    """threestudio's name for `objective: sjc`."""
    var_red: bool = True
    """threestudio's; with use_sjc and false: `objective: sjc_plain`, the same in expectation and noisier."""
    use_img_loss: bool = False
    """threestudio's name for `objective: hifa`."""
    grad_clip: Annealed | None = None
    """Annealed. Elementwise limit of each draw's f, before the weights p/q and the mean, so that the objective is
    threestudio's whatever K is. (Clipping the mean would change it with K.)"""

    num_draws: int | str = 4
    """K, draws of (t, eps) per render. auto: the K with the least variance times seconds, measured as the run goes
    (see `carv_3d.core.auto_draws`); runs of one seed may then differ, since seconds do."""
    proposal: str = "weight"
    """Where timesteps are drawn: uniform | weight (in proportion to w) | adaptive (to w RMS|residual|)."""
    stratify: str = "render"
    """none | render (K strata in each render) | global (strata over all renders of the step)."""
    antithetic: bool = False
    """Draws in pairs with the same t and opposite noise; K is even."""
    control_variate: bool = False
    """Subtract from each draw what it takes from its own noise, learnt on earlier steps; the same in expectation."""
    max_batch: int = 16
    """Draws denoised at once; halved by itself when memory runs out."""
    vae_sample: str | bool = True
    """True or "sample": one posterior sample per render. False or "mode": the posterior's mode. "draw": one posterior
    sample per draw, from the one encoding of its render; the same in expectation as "sample"."""
    use_recon_loss: bool = False
    """Also return loss_recon = MSE(rgb, decode(encode(rgb))); nothing is decoded otherwise."""
    seed: int | None = None
    """Of the guidance's own generator; None takes it from torch's global one when it is built."""

    def __post_init__(self) -> None:
        for name in ANNEALED:
            if not (name == "grad_clip" and self.grad_clip is None):
                setattr(self, name, check_annealed(name, getattr(self, name)))
        self._check_percents()
        if self.grad_clip is not None and min(annealed_values(self.grad_clip)) <= 0:
            raise CarvError(f"grad_clip is {self.grad_clip}; it must be above 0, or null for no clipping.")
        for name in ("num_draws", "max_batch", "trainer_max_steps"):
            value = getattr(self, name)
            if name == "num_draws" and value == AUTO:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                choice = f", or {AUTO}" if name == "num_draws" else ""
                raise CarvError(f"{name} is {value!r}; it must be a whole number of at least 1{choice}.")
        for name in FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise CarvError(f"{name} is {getattr(self, name)!r}; it must be true or false.")
        if self.antithetic and isinstance(self.num_draws, int) and self.num_draws % 2:
            raise CarvError(
                f"num_draws is {self.num_draws}, and antithetic draws come in pairs: "
                f"set num_draws to {self.num_draws + 1} or antithetic to false."
            )
        if isinstance(self.vae_sample, bool):
            self.vae_sample = "sample" if self.vae_sample else "mode"
        for name, allowed in (
            ("proposal", PROPOSALS),
            ("stratify", STRATIFY),
            ("weighting_strategy", WEIGHTINGS),
            ("cfg_convention", CFG_CONVENTIONS),
            ("vae_sample", VAE_SAMPLES),
            ("objective", self.objectives),
        ):
            if getattr(self, name) not in allowed:
                raise CarvError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}.")
        self._name_objective()
        self._check_per_draw_sample()
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise CarvError(f"seed is {self.seed!r}; it must be a whole number or null.")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise CarvError(f"seed is {self.seed}; it must be at least 0 and below 2^63, or null.")

    def _name_objective(self) -> None:
        """threestudio's flags as an objective; from here on the objective alone says what is distilled."""
        if self.use_sjc and self.use_img_loss:
            raise CarvError("use_img_loss belongs to score distillation: set use_sjc or use_img_loss to false.")
        plain, image = self.objectives[0], self._image_objective
        flagged = image if self.use_img_loss else "sjc" if self.var_red else "sjc_plain"
        if self.use_sjc or self.use_img_loss:
            if self.objective not in (plain, flagged):
                flag = "use_sjc" if self.use_sjc else "use_img_loss"
                raise CarvError(f"{flag} means objective {flagged}, and objective is {self.objective}: leave one out.")
            self.objective = flagged
        self.use_sjc, self.var_red, self.use_img_loss = False, True, False
        if OBJECTIVES[self.objective].weight is not None and self.weighting_strategy != "sds":
            raise CarvError(
                f"objective {self.objective} has no w(t), so weighting_strategy {self.weighting_strategy} would be "
                "ignored: leave it out."
            )

    def _check_per_draw_sample(self) -> None:
        if self.vae_sample != "draw":
            return
        refused: dict[str, str | bool] = {"num_draws": AUTO, "proposal": "adaptive", "control_variate": True}
        refused["objective"] = self._image_objective
        for name, bad in refused.items():
            if getattr(self, name) == bad:
                shown = str(bad).lower()
                raise CarvError(f"vae_sample is draw, which does not go with {name}: {shown}; change one of the two.")

    def _check_percents(self) -> None:
        low, high = self.min_step_percent, self.max_step_percent
        for name, value in (("min_step_percent", low), ("max_step_percent", high)):
            if any(not 0 <= v <= 1 for v in annealed_values(value)):
                raise CarvError(f"{name} is {value}; a share of the timesteps lies between 0 and 1.")
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

    def weights(self, schedule: NoiseSchedule) -> Tensor:
        """w(t) as it multiplies the residual, over all timesteps (T,)."""
        return OBJECTIVES[self.objective].weights(schedule, self.weighting_strategy)

    def at(self, num_train_timesteps: int, step: int, epoch: int = 0) -> Annealing:
        """The annealed options at a step. Raises CarvError if the schedules of the timesteps have crossed."""
        clip = None if self.grad_clip is None else annealed(self.grad_clip, step, epoch)
        scale = annealed(self.guidance_scale, step, epoch)
        return Annealing(scale, *self.timestep_range(num_train_timesteps, step, epoch), clip)

    def timestep_range(self, num_train_timesteps: int, step: int, epoch: int = 0) -> tuple[int, int]:
        """The smallest and largest timestep at a step, both included, within [0, T - 1].

        Raises CarvError if the schedules have crossed.
        """
        low = annealed(self.min_step_percent, step, epoch)
        high = annealed(self.max_step_percent, step, epoch)
        if self.sqrt_anneal:
            most = self.max_step_percent
            top = float(most) if isinstance(most, (int, float)) else float(most[1])
            progress = min(max(step / self.trainer_max_steps, 0.0), 1.0) ** 0.5
            low = high = low + (top - low) * (1.0 - progress)
        if low > high:
            raise CarvError(f"min_step_percent ({low:g}) is above max_step_percent ({high:g}) at step {step}.")
        last = num_train_timesteps - 1
        return min(int(num_train_timesteps * low), last), min(int(num_train_timesteps * high), last)
