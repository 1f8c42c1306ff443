"""The distillation itself: a frozen teacher in, a one-step generator out.

    distillation = Distillation(StableDiffusionTeacher.load("carv-tiny"), DistillOptions(), TinyCaptions())
    while distillation.step < distillation.options.steps:
        figures = distillation.train_step()
    images = distillation.images(["a red mug"], seed=0)

It knows nothing of folders and files; `carv_3d.distill.command` does.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from typing import Any

import torch
from torch import Tensor

from carv_3d.config.annealing import annealed
from carv_3d.core.checks import COPIES
from carv_3d.core.costs import CostMeter
from carv_3d.core.ema import Average
from carv_3d.core.estimator import Estimate
from carv_3d.core.memory import check_memory
from carv_3d.core.seeds import seed_for
from carv_3d.distill.dmd import DistributionMatching
from carv_3d.distill.network import FakeScore, OneStepGenerator
from carv_3d.distill.options import DistillOptions
from carv_3d.distill.prompts import Prompts
from carv_3d.distill.updates import Updates
from carv_3d.errors import CarvError
from carv_3d.objectives.score_matching import ScoreMatching
from carv_3d.runs.checkpoint import state_fits
from carv_3d.runs.ranks import Ranks
from carv_3d.teachers.timed import TimedTeacher

PHASES = ("text", "generate", "denoise", "backward", "train_fake", "update")
STREAMS = ("noise", "prompts", "draws", "fake_draws")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(options: DistillOptions, device: torch.device) -> None:
    """CarvError for fp16 without CUDA."""
    if options.precision == "fp16" and device.type != "cuda":
        raise CarvError("precision is fp16, which needs CUDA; take bf16 or float32 on this device")


def check_noise(teacher: Any, samples: int, draws: int, fix: str) -> None:
    """CarvError unless memory holds the noise of that many draws of each sample; ends in `fix`."""
    noise = 4 * samples * draws * teacher.latent_channels * teacher.latent_size**2  # bytes
    check_memory({f"batch_size x draws = {samples} x {draws}": COPIES * noise}, fix, teacher.device)


class Distillation:
    """One generator that is distilled from one teacher.

    Attributes:
        step: updates of the generator so far.
        generator, fake, average, teacher, matching, fake_training, meter: the parts.
    """

    def __init__(
        self,
        teacher: Any,
        options: DistillOptions,
        prompts: Prompts,
        ranks: Ranks | None = None,
        generator: OneStepGenerator | None = None,
        fake: FakeScore | None = None,
    ) -> None:
        """teacher: a `carv_3d.teachers.base.Teacher`; of a Stable Diffusion model unless the networks are given.

        generator, fake: copies of the teacher's UNet unless given.
        Raises CarvError for fp16 without CUDA.
        """
        self.options, self.prompts, self.ranks = options, prompts, ranks or Ranks()
        self.device: torch.device = teacher.device
        check_precision(options, self.device)
        draws = max(options.K, options.fake_draws)
        check_noise(teacher, options.batch_size, draws, "lower batch_size, num_draws or fake_draws")
        self.meter = CostMeter(self.device)
        self.teacher: Any = TimedTeacher(teacher, self.meter)
        self.generator = OneStepGenerator.from_teacher(teacher) if generator is None else generator
        self.fake = FakeScore.from_teacher(teacher) if fake is None else fake
        self.average = Average(self.generator, options.ema)
        place = {"rank": self.ranks.rank, "world_size": self.ranks.world_size}
        T = teacher.schedule.num_train_timesteps
        self.matching = DistributionMatching(
            self.teacher,
            self._fake_eps_hat,
            options.estimator(T, **place),
            annealed(options.guidance_scale, 0),
            options.objective,
            self.meter,
        )
        self.matching.estimator.non_finite = None  # `Updates` counts
        self.fake_training = ScoreMatching(
            self.fake, options.fake_draws, options.stratify, options.antithetic, options.max_batch, shared_seed=1,
            **place,
        )  # fmt: skip
        fp16 = options.precision == "fp16"
        rules: tuple[Any, ...] = (options.betas, options.max_grad_norm, self.ranks, fp16)
        self.generator_updates = Updates(self.generator, options.lr, *rules)
        self.fake_updates = Updates(self.fake, options.fake_lr, *rules)
        self.generators = {
            name: torch.Generator().manual_seed(seed_for(options.seed, f"{name} {self.ranks.rank}")) for name in STREAMS
        }
        self.uncond = self.teacher.text_embeddings([""]).float()
        self.step = 0

    def train_step(self) -> dict[str, float]:
        """R samples, K noised copies of each, both scores on all in one batch, one backward, one update.

        Then come the fake score's updates, the first on the same samples.

        Returns the step's figures by name: those of `Estimate.scalars` (latent_grad_norm for its grad_norm),
        grad_norm and grad_norm_fake before clipping, loss_fake, skipped, seconds and seconds_<phase>, nfe so far.

        Raises:
            CarvError: a gradient has not been finite for many updates.
        """
        begin = time.perf_counter()
        self.meter.seconds = dict.fromkeys(PHASES, 0.0)
        z, text, estimate = self.backward()
        with self.meter.phase("update"):
            if not bool(estimate.finite.any()):  # nothing was seen: Adam would continue along what it remembers
                self.generator_updates.skip()
            norm = self.generator_updates.apply()
            if self.generator_updates.skipped == 0:
                self.average.update(self.generator, self.step)
        loss_fake, norm_fake = self._train_fake(z.detach(), text)
        self.step += 1
        skipped = max(self.generator_updates.skipped, self.fake_updates.skipped)
        figures = {name: value for name, value in estimate.scalars.items() if name != "grad_norm"}
        figures |= {f"seconds_{name}": seconds for name, seconds in self.meter.seconds.items()}
        figures |= {
            "step": float(self.step),
            "seconds": time.perf_counter() - begin,
            "latent_grad_norm": estimate.scalars.get("grad_norm", math.nan),
            "grad_norm": norm,
            "grad_norm_fake": norm_fake,
            "loss_fake": loss_fake,
            "skipped": float(skipped > 0),
            "nfe": float(self.meter.nfe),
        }
        return figures

    def backward(self) -> tuple[Tensor, Tensor, Estimate]:
        """The generator's part of a step, without its update: the gradient is left in the parameters' grad.

        Returns z (R, C, h, w), its text (R, L, D) and the estimate.
        """
        z, text = self.generate(self.options.batch_size)
        estimate = self.matching.estimate(z, text, self.uncond, self.generators["draws"])
        self.generator_updates.zero_grad()
        with self.meter.phase("backward"):
            self.generator_updates.scaled(self.loss(estimate, z)).backward()
        return z, text, estimate

    @staticmethod
    def loss(estimate: Estimate, z: Tensor) -> Tensor:
        """The estimate's loss as a mean over the latent's elements, as DMD has it."""
        return estimate.loss / z[0].numel()

    def generate(self, n: int, generators: dict[str, torch.Generator] | None = None) -> tuple[Tensor, Tensor]:
        """Samples of the generator (n, C, h, w), with autograd, and their prompts' embeddings (n, L, D).

        generators: "noise" and "prompts", in place of the run's own.
        """
        streams = self.generators if generators is None else generators
        text = self.embed(self.prompts.draw(n, streams["prompts"]))
        eps = self._noise(n, streams["noise"])
        with self.meter.phase("generate"), self.autocast():
            z = self.generator(eps, text)
        self.meter.count(nfe=n)
        return z, text

    def embed(self, prompts: list[str]) -> Tensor:
        """(n, L, D), float32."""
        with self.meter.phase("text"):
            text: Tensor = self.teacher.text_embeddings(prompts).float()
            if not self.prompts.bounded:
                self.teacher.forget_texts()
        return text

    @torch.no_grad()
    def images(self, prompts: list[str], seed: int) -> Tensor:
        """(n, 3, H, W) in [0, 1] of the averaged generator: the same noise for the same seed. Not counted."""
        noise = torch.Generator().manual_seed(seed_for(self.options.seed, f"previews {seed}"))
        with self.meter.uncounted():
            z = self.averaged()(self._noise(len(prompts), noise), self.embed(prompts))
            images: Tensor = self.teacher.decode(z)
        return images

    def averaged(self) -> OneStepGenerator:
        """A frozen generator with the averaged weights."""
        out = copy.deepcopy(self.generator).requires_grad_(False)
        out.load_state_dict(self.average.state)
        return out

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Within, generator and fake score compute in `precision`."""
        dtype = DTYPES.get(self.options.precision)
        return contextlib.nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    def _fake_eps_hat(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        with self.autocast():
            return self.fake.eps_hat(z_t, t, text)

    def _train_fake(self, z: Tensor, text: Tensor) -> tuple[float, float]:
        """(mean loss, mean norm of the gradient) of the fake score's updates."""
        losses, norms = [], []
        for update in range(self.options.fake_updates):
            if update > 0:  # samples of their own
                with torch.no_grad():
                    z, text = self.generate(self.options.batch_size)
            with self.meter.phase("train_fake"), self.autocast():
                draws = self.fake_training.draw(z, self.generators["fake_draws"])
                gradients = self.fake_training.gradients(z, draws, (text,), self.fake_updates.scale)
                gradients.store()
            self.meter.count(nfe=len(z) * self.options.fake_draws)
            if not bool(gradients.finite.all()):  # part of the batch is missing: no mean over it
                self.fake_updates.skip()
            with self.meter.phase("update"):
                norms.append(self.fake_updates.apply())
            losses.append(gradients.mean)
        return sum(losses) / len(losses), sum(norms) / len(norms)

    def _noise(self, n: int, generator: torch.Generator) -> Tensor:
        size = self.teacher.latent_size
        return torch.randn(n, self.teacher.latent_channels, size, size, generator=generator).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to continue as if it had not stopped: tensors and primitives. Every rank must call it."""
        own = {
            "generators": {name: g.get_state() for name, g in self.generators.items()},
            "matching": self.matching.estimator.state_dict(),
            "fake_training": self.fake_training.estimator.state_dict(),
        }
        return {
            "step": self.step,
            "nfe": self.meter.nfe,
            "generator": self.generator.state_dict(),
            "fake": self.fake.state_dict(),
            "average": self.average.state,
            "generator_updates": self.generator_updates.state_dict(),
            "fake_updates": self.fake_updates.state_dict(),
            "ranks": self.ranks.gather(own),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back `state_dict`; CarvError where it belongs to other options or another number of processes."""
        with state_fits("these options", state, self.state_dict()):
            if len(state["ranks"]) != self.ranks.world_size:
                raise CarvError(
                    f"the checkpoint is of {len(state['ranks'])} processes and this is {self.ranks.world_size}: "
                    "start as many as before"
                )
            self.load_networks(state)
            self.generator_updates.load_state_dict(state["generator_updates"])
            self.fake_updates.load_state_dict(state["fake_updates"])
            own = state["ranks"][self.ranks.rank]
            for name, generator in self.generators.items():
                generator.set_state(own["generators"][name].cpu())
            self.matching.estimator.load_state_dict(own["matching"])
            self.fake_training.estimator.load_state_dict(own["fake_training"])
            self.meter.counts.update(nfe=state["nfe"])

    def load_networks(self, state: dict[str, Any]) -> None:
        """Of `state_dict`, what the run has learnt, and its step: for accounts of it, whatever the processes."""
        with state_fits("these options", state, {}):
            self.generator.load_state_dict(state["generator"])
            self.fake.load_state_dict(state["fake"])
            self.average.load_state_dict(state["average"])
            self.step = int(state["step"])
