"""What a distillation is told."""

from __future__ import annotations

from dataclasses import dataclass

from carv_3d.config.reader import at_least, one_of
from carv_3d.core.designs import STRATIFY, Design
from carv_3d.core.devices import DEVICES
from carv_3d.core.estimator import EstimatorOptions
from carv_3d.core.proposals import PROPOSALS
from carv_3d.distill.dmd import CHOICES as OBJECTIVES
from carv_3d.errors import CarvError

PRECISIONS = ("float32", "bf16", "fp16")


@dataclass(frozen=True)
class DistillOptions:
    """One-step distillation. Raises CarvError, naming the option, for a value that cannot be meant."""

    steps: int = 1000
    """Updates of the generator."""
    batch_size: int = 8
    """R, generated samples per update and process."""
    num_draws: int = 4
    """K, draws of (t, eps) per sample."""
    proposal: str = "uniform"
    """Where timesteps are drawn: uniform | weight | adaptive. Under objective=dmd weight is uniform: the normaliser
    leaves no factor that hangs on t alone."""
    stratify: str = "render"
    """none | render (K strata in each sample) | global (over all samples, of all processes), see Design."""
    antithetic: bool = False
    """Draws in pairs with the same t and opposite noise; K is even. Where fake_draws is odd, the fake's have no
    pairs."""
    min_step_percent: float = 0.02
    max_step_percent: float = 0.98
    """Of the timesteps, both ends included."""
    guidance_scale: float = 3.5
    """Of the real score; the fake's has none."""
    objective: str = "dmd"
    """dmd, with the normaliser of each draw | kl, without, see `dmd_residual`."""
    fake_updates: int = 2
    """Updates of the fake score per update of the generator (DMD2's two time scales)."""
    fake_draws: int = 2
    """K_fake, draws per sample that train the fake score."""
    lr: float = 2e-5
    fake_lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float = 10.0
    """Largest norm of an update's whole gradient, the generator's and the fake score's: after the mean over draws, it
    shortens the step."""
    ema: float = 0.99
    """Decay of the average of the generator's weights, which previews and the finished model have."""
    precision: str = "float32"
    """float32 | bf16 | fp16 (CUDA): in which generator and fake score compute; their weights stay float32."""
    max_batch: int = 32
    """Rows given to a score at once; halved by itself when memory runs out."""
    prompts: str | None = None
    """A text file with a prompt on each line; carv-tiny alone has its own."""
    preview_every: int = 100
    """Steps between two previews."""
    preview_prompts: int = 8
    save_every: float = 300.0
    """Seconds between two checkpoints."""
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        at_least(self, 0, "steps", "guidance_scale", "save_every", "seed")
        at_least(self, 1, "batch_size", "fake_updates", "fake_draws", "max_batch", "preview_every", "preview_prompts")
        for name, allowed in (
            ("proposal", PROPOSALS),
            ("stratify", STRATIFY),
            ("objective", OBJECTIVES),
            ("precision", PRECISIONS),
            ("device", DEVICES),
        ):
            one_of(self, name, allowed)
        Design(self.stratify, self.antithetic).check(self.num_draws)
        for name in ("lr", "fake_lr", "grad_clip"):
            if not getattr(self, name) > 0:
                raise CarvError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not all(0 <= b < 1 for b in (*self.betas, self.ema)):
            raise CarvError(f"betas are {list(self.betas)} and ema {self.ema}; each must be at least 0 and below 1")
        if not 0 <= self.min_step_percent <= self.max_step_percent <= 1:
            raise CarvError(
                f"min_step_percent is {self.min_step_percent} and max_step_percent {self.max_step_percent}; "
                "they are shares of the timesteps from 0 to 1, the first not above the second"
            )
        if self.seed >= 2**63:
            raise CarvError(f"seed is {self.seed}; it must be below 2^63")

    def estimator(self, num_train_timesteps: int, rank: int = 0, world_size: int = 1) -> EstimatorOptions:
        """Of the generator's gradient, for a teacher with that many timesteps."""
        last = num_train_timesteps - 1
        return EstimatorOptions(
            num_draws=self.num_draws,
            proposal=self.proposal,
            stratify=self.stratify,
            antithetic=self.antithetic,
            max_batch=self.max_batch,
            weighting="uniform",
            min_step=min(int(num_train_timesteps * self.min_step_percent), last),
            max_step=min(int(num_train_timesteps * self.max_step_percent), last),
            rank=rank,
            world_size=world_size,
        )
