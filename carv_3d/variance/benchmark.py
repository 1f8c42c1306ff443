"""Measuring one frozen scene in batches that are independent of each other: variances by source, seconds by phase.

In each step of a batch, for each R, the renders are made once. For every (K, method) two gradients a, b are drawn on
them, independent given the renders. With A and B the means of a and b over all methods of one upstream sample,

    V_in = E |a - b|^2 / 2        s_out^2 = Cov(A, B), over steps        Var = s_out^2 + V_in,

of the gradient of the distillation loss of a step, with respect to all of the field's parameters. One backward serves
each method, two the upstream part, and all methods see the same renders (arXiv 2605.21489, "variance accounting").
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from carv_3d.core.estimator import Draws
from carv_3d.core.estimator_names import PLAIN
from carv_3d.core.seeds import batch_seed
from carv_3d.core.variance import cross_covariance, flat_gradient, half_square
from carv_3d.generate.trainer import TextTo3D
from carv_3d.guidance.cfg import Conditioning
from carv_3d.guidance.images import resized
from carv_3d.guidance.sds import SDSGuidance
from carv_3d.scenes.cameras import CameraOptions
from carv_3d.variance.methods import Setting

STEPS = 4  # in a batch
WARM_UP = 8  # steps for methods that learn
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass
class Batch:
    """What one batch measured, in primitives.

    Attributes:
        v_in: V_in of a step, by setting.
        s_out2: s_out^2 of a step, by upstream sample.
        seconds: of one step without the optimizer's, by setting and phase ("step" the whole of it). Of "all", the
            batch's own.
        norms: (t, |J^T f|^2) of single draws.
    """

    v_in: dict[str, float]
    s_out2: dict[str, float]
    seconds: dict[str, dict[str, float]]
    norms: list[tuple[int, float]]


@dataclass
class _Samples:
    """V_in of every step by setting, A and B of every step by upstream sample, and the norms of single draws."""

    v_in: dict[str, list[float]]
    pairs: dict[str, list[tuple[Tensor, Tensor]]]
    norms: list[tuple[int, float]] = field(default_factory=list)


class VarianceBenchmark:
    """Settings measured on a trainer's scene. Of the trainer, only the meter moves on."""

    def __init__(self, trainer: TextTo3D, settings: Sequence[Setting], seed: int = 0) -> None:
        self.trainer, self.settings, self.seed = trainer, list(settings), seed
        self.parameters = list(trainer.field.parameters())
        options = trainer.guidance.options
        sample = "sample" if options.vae_sample == "draw" else options.vae_sample
        plain = replace(options, num_draws=1, vae_sample=sample, **PLAIN)
        self._single = SDSGuidance(trainer.teacher, plain)  # only ever given its draws
        self.guidances = {
            s.key: SDSGuidance(trainer.teacher, replace(plain, num_draws=s.K, **s.method.guidance))
            for s in self.settings
        }
        with self._undisturbed():
            self._learnt = {s.key: self._learn(s) for s in self.settings if s.method.learns}

    def batch(self, number: int) -> Batch:
        """The batch of that number: the same number gives the same draws."""
        begin = time.perf_counter()
        for i, s in enumerate(self.settings):
            self.guidances[s.key].generator.manual_seed(batch_seed(self.seed, number, 10 + i))
        samples = _Samples({s.key: [] for s in self.settings}, {s.upstream: [] for s in self.settings})
        places = dict.fromkeys((s.R, s.method.cameras) for s in self.settings)
        with self._undisturbed():
            for step in range(number * STEPS, (number + 1) * STEPS):
                for place in places:
                    same = [s for s in self.settings if (s.R, s.method.cameras) == place]
                    self._step(step, same, samples)
            seconds = {s.key: self._seconds(s) for s in self.settings}
        s_out2 = {u: cross_covariance(*map(torch.stack, zip(*pairs))) for u, pairs in samples.pairs.items()}
        v_in = {key: sum(values) / len(values) for key, values in samples.v_in.items()}
        seconds["all"] = {"step": time.perf_counter() - begin}
        return Batch(v_in, s_out2, seconds, samples.norms)

    def _step(self, step: int, settings: list[Setting], samples: _Samples) -> None:
        """Two gradients of each of these settings on the renders of one step."""
        out, cond = self.trainer.upstream(data=self._cameras(settings[0], step))
        latents = self._latents(out.comp_rgb, batch_seed(self.seed, step, 1))
        losses: dict[str, list[Tensor]] = {}
        for s in settings:
            pair = torch.stack([self._loss(s, out.comp_rgb, latents, cond) for _ in range(2)])
            difference = flat_gradient(pair[0] - pair[1], self.parameters)
            samples.v_in[s.key].append(float(half_square(difference)))
            losses.setdefault(s.upstream, []).append(s.K * pair)
        for upstream, pairs in losses.items():
            a, b = torch.stack(pairs).sum(0) / sum(s.K for s in settings if s.upstream == upstream)
            samples.pairs[upstream].append((flat_gradient(a, self.parameters), flat_gradient(b, self.parameters)))
        if settings[0] is self.settings[0]:
            samples.norms += self._norms(step, latents, cond)

    def _latents(self, rgb: Tensor, seed: int) -> Tensor:
        """(R, h, w, C) latents of a step's renders, which all of its settings share."""
        teacher = self.trainer.teacher
        images = resized(rgb.permute(0, 3, 1, 2), teacher.image_size)
        generator = torch.Generator(self.trainer.device).manual_seed(seed)
        z: Tensor = teacher.encode(images, generator, self._single.options.vae_sample != "mode")
        return z.permute(0, 2, 3, 1)

    def _loss(self, s: Setting, rgb: Tensor, latents: Tensor, cond: Conditioning) -> Tensor:
        """The distillation loss of new draws."""
        encoded = not s.method.samples_posterior
        guided = self.guidances[s.key].guide(
            latents if encoded else rgb, cond, self.trainer.now, rgb_as_latents=encoded, with_recon=False
        )
        self._forget(s)
        return guided.loss_sds

    def _norms(self, step: int, latents: Tensor, cond: Conditioning, n: int = 2) -> list[tuple[int, float]]:
        """|J^T f|^2 of n single draws of the first render, their timesteps spread evenly over the range."""
        now, schedule = self.trainer.now, self.trainer.teacher.schedule
        low, high = self.trainer.guidance.options.timestep_range(schedule.num_train_timesteps, now)
        places = [((step * n + i) * GOLDEN + 0.5) % 1 for i in range(n)]
        t = torch.tensor([[min(high, low + int(u * (high - low + 1))) for u in places]])
        g = torch.Generator().manual_seed(batch_seed(self.seed, step, 2))
        eps = torch.randn(1, n, *latents.permute(0, 3, 1, 2).shape[1:], generator=g)
        draws = Draws(t.to(latents.device), eps.to(latents))
        first = cond.samples(slice(1))
        guided = self._single.guide(latents[:1], first, now, rgb_as_latents=True, with_recon=False, draws=draws)
        squares = [
            float(flat_gradient(guided.latents, self.parameters, f[None]).double().square().sum())
            for f in guided.estimate.residual[0]
        ]
        return list(zip(t[0].tolist(), squares))

    def _seconds(self, s: Setting) -> dict[str, float]:
        """Of one whole step with all its losses, by phase."""
        data, device = self._cameras(s, 0), self.trainer.device
        begin = time.perf_counter()
        self.trainer.backward(self.guidances[s.key], data)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = time.perf_counter() - begin
        self._forget(s)
        phases = dict(self.trainer.meter.seconds)
        return {**phases, "other": max(took - sum(phases.values()), 0.0), "step": took}

    def _cameras(self, s: Setting, step: int) -> CameraOptions:
        """The camera options of a setting; the trainer's generators begin anew, so that each step is like any other."""
        for i, name in enumerate(("cameras", "background", "samples")):
            self.trainer.generators[name].manual_seed(batch_seed(self.seed, step, 3 + i))
        return replace(self.trainer.config.data, batch_size=s.R, **s.method.data)

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """The trainer's generators are put back, and no gradient is left, whatever happens within."""
        states = {name: g.get_state() for name, g in self.trainer.generators.items()}
        try:
            yield
        finally:
            for name, state in states.items():
                self.trainer.generators[name].set_state(state)
            self.trainer.optimizer.zero_grad(set_to_none=True)

    def _learn(self, s: Setting) -> list[tuple[Any, dict[str, Any]]]:
        """A few steps of learning, fewer than a run has; returns what learnt, with its state.

        What is learnt while measuring is taken back, or an adaptive method would know a frozen scene as no run knows
        a moving one.
        """
        guidance = self.guidances[s.key]
        for i in range(WARM_UP):
            with torch.no_grad():
                out, cond = self.trainer.upstream(data=self._cameras(s, -1 - i))
                guidance.guide(out.comp_rgb, cond, self.trainer.now, with_recon=False)
        parts = [part for part in (guidance.estimator.proposal, guidance.estimator.control) if part is not None]
        return [(part, copy.deepcopy(part.state_dict())) for part in parts]

    def _forget(self, s: Setting) -> None:
        for part, state in self._learnt.get(s.key, ()):
            part.load_state_dict(state)
