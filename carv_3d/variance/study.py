"""Measuring one frozen scene, in blocks that are independent of each other: variances by source, seconds by phase.

In a round, for each R, the renders of one step are made once. For every (K, method) two gradients a, b are drawn on
them, independent given the renders. With A and B the means of a and b over all methods with the same upstream sample,

    V_in = E |a - b|^2 / 2        s_out^2 = Cov(A, B), over rounds        Var = s_out^2 + V_in,

of the gradient of the distillation loss of a step, with respect to all of the field's parameters: one backward for each
method and two for the upstream part, and every method is measured on the same renders. (arXiv 2605.21489, "variance
accounting".) Nothing is assumed of how strata or cameras tie draws or renders together.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from carv_3d.core.estimator import Draws
from carv_3d.core.seeds import batch_seed
from carv_3d.core.variance import cross_covariance, flat_gradient, half_square
from carv_3d.generate.trainer import TextTo3D
from carv_3d.guidance.cfg import Conditioning
from carv_3d.guidance.images import resized
from carv_3d.guidance.sds import SDSGuidance
from carv_3d.variance.methods import LEARNING, PLAIN, Method

ROUNDS = 4  # in a block
WARM_UP = 8  # steps for methods that learn
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Entry:
    """One allocation of one method: R renders with K draws each."""

    R: int
    K: int
    method: Method

    @property
    def key(self) -> str:
        """A name of its own."""
        return f"{self.R},{self.K},{self.method.name}"

    @property
    def pool(self) -> str:
        """Entries of one pool have the same upstream sample."""
        cameras, vae = self.method.upstream
        return f"{self.R},{int(cameras)},{int(vae)}"


@dataclass
class Block:
    """What one block measured. Keys: of entries, and of pools for outside; primitives only.

    inside: V_in of a step. outside: s_out^2 of a step. seconds: of one step of each entry by phase, "step" the whole of
    it, without the optimizer's; of "all", the block's own. norms: (t, |J^T f|^2) of single draws.
    """

    inside: dict[str, float]
    outside: dict[str, float]
    seconds: dict[str, dict[str, float]]
    norms: list[tuple[int, float]]


class Study:
    """The entries on one scene; the host's field is left as it is, its guidance and cameras are not."""

    def __init__(self, host: TextTo3D, entries: Sequence[Entry], seed: int = 0) -> None:
        self.host, self.entries, self.seed = host, list(entries), seed
        self.parameters = list(host.field.parameters())
        self.config, self.original = host.config, host.guidance
        options = host.guidance.options
        sample = "sample" if options.vae_sample == "draw" else options.vae_sample
        plain = replace(options, num_draws=1, vae_sample=sample, **PLAIN["guidance"])
        self._single = SDSGuidance(host.teacher, plain)  # only ever given its draws
        self.guidances = {
            e.key: SDSGuidance(host.teacher, replace(plain, num_draws=e.K, **e.method.guidance)) for e in self.entries
        }
        self._learn()

    def block(self, number: int) -> Block:
        """The block of that number: the same number gives the same draws."""
        begin = time.perf_counter()
        for i, e in enumerate(self.entries):
            self.guidances[e.key].generator.manual_seed(self._seed(number, 10 + i))
        inside: dict[str, list[float]] = {e.key: [] for e in self.entries}
        halves: dict[str, list[tuple[Tensor, Tensor]]] = {e.pool: [] for e in self.entries}
        norms: list[tuple[int, float]] = []
        for turn in range(ROUNDS):
            for R, cameras in dict.fromkeys((e.R, e.method.upstream[0]) for e in self.entries):
                mine = [e for e in self.entries if (e.R, e.method.upstream[0]) == (R, cameras)]
                self._round(number * ROUNDS + turn, mine, inside, halves, norms)
        outside = {
            pool: cross_covariance(*(torch.stack(side) for side in zip(*pairs))) for pool, pairs in halves.items()
        }
        means = {key: sum(values) / len(values) for key, values in inside.items()}
        seconds = {e.key: self._seconds(e) for e in self.entries}
        self.host.config, self.host.guidance = self.config, self.original
        seconds["all"] = {"step": time.perf_counter() - begin}
        return Block(means, outside, seconds, norms)

    def _round(
        self,
        turn: int,
        entries: list[Entry],
        inside: dict[str, list[float]],
        halves: dict[str, list[tuple[Tensor, Tensor]]],
        norms: list[tuple[int, float]],
    ) -> None:
        host, step = self.host, self.host.now
        self._look(entries[0], turn)
        out, told = host.upstream()
        images = resized(out.comp_rgb.permute(0, 3, 1, 2), host.teacher.image_size)
        z: Tensor = host.teacher.encode(
            images, torch.Generator(host.device).manual_seed(self._seed(turn, 1)),
            self._single.options.vae_sample != "mode",
        )  # fmt: skip
        latents = z.permute(0, 2, 3, 1)
        sums: dict[str, list[Tensor]] = {}
        for e in entries:
            guidance = self.guidances[e.key]
            given = (out.comp_rgb, False) if e.method.upstream[1] else (latents, True)
            losses: list[Tensor] = []
            for _ in range(2):
                guided = guidance.guide(given[0], told, step, rgb_as_latents=given[1], with_recon=False)
                losses.append(guided.loss_sds)
                self._forget(e)
            one, two = losses
            inside[e.key].append(float(half_square(flat_gradient(one - two, self.parameters))))
            sums.setdefault(e.pool, []).append(e.K * torch.stack([one, two]))
        for pool, losses in sums.items():
            total = sum(e.K for e in entries if e.pool == pool)
            both = torch.stack(losses).sum(0) / total
            halves[pool].append((flat_gradient(both[0], self.parameters), flat_gradient(both[1], self.parameters)))
        if entries[0] is self.entries[0]:
            norms += self._norms(turn, latents, told)

    def _norms(self, turn: int, latents: Tensor, told: Conditioning, n: int = 2) -> list[tuple[int, float]]:
        """|J^T f|^2 of n single draws of the first render, their timesteps spread evenly over the range."""
        step = self.host.now
        low, high = self.original.options.timestep_range(self.host.teacher.schedule.num_train_timesteps, step)
        places = [((turn * n + i) * GOLDEN + 0.5) % 1 for i in range(n)]
        t = torch.tensor([[min(high, low + int(u * (high - low + 1))) for u in places]])
        g = torch.Generator().manual_seed(self._seed(turn, 2))
        eps = torch.randn(1, n, *latents.permute(0, 3, 1, 2).shape[1:], generator=g)
        draws = Draws(t.to(latents.device), eps.to(latents))
        first = told.samples(slice(1))
        guided = self._single.guide(latents[:1], first, step, rgb_as_latents=True, with_recon=False, draws=draws)
        squares = [
            float(flat_gradient(guided.latents, self.parameters, f[None]).double().square().sum())
            for f in guided.estimate.residual[0]
        ]
        return list(zip(t[0].tolist(), squares))

    def _seconds(self, e: Entry) -> dict[str, float]:
        """Of one whole step with all its losses, by phase."""
        self._look(e, 0)
        self.host.guidance = self.guidances[e.key]
        begin = time.perf_counter()
        self.host.backward()
        if self.host.device.type == "cuda":
            torch.cuda.synchronize(self.host.device)
        took = time.perf_counter() - begin
        self._forget(e)
        self.host.optimizer.zero_grad(set_to_none=True)
        phases = dict(self.host.meter.seconds)
        return {**phases, "other": max(took - sum(phases.values()), 0.0), "step": took}

    def _look(self, e: Entry, turn: int) -> None:
        """Cameras of a turn: a sequence begins anew in each, so that a turn is a step like any other."""
        data = replace(self.config.data, batch_size=e.R, **e.method.data)
        self.host.config = replace(self.config, data=data)
        for i, name in enumerate(("cameras", "background", "samples")):
            self.host.generators[name].manual_seed(self._seed(turn, 3 + i))

    def _learn(self) -> None:
        """A few steps of learning, fewer than a run had: what is learnt while measuring is taken back, or an adaptive
        method would know a frozen scene as no run knows a moving one."""
        self._learnt: dict[str, list[tuple[Any, dict[str, Any]]]] = {}
        for e in self.entries:
            if not set(LEARNING) & set(e.method.words):
                continue
            for i in range(WARM_UP):
                self._look(e, -1 - i)
                with torch.no_grad():
                    out, told = self.host.upstream()
                    self.guidances[e.key].guide(out.comp_rgb, told, self.host.now, with_recon=False)
            estimator = self.guidances[e.key].estimator
            parts = [part for part in (estimator.proposal, estimator.control) if part is not None]
            self._learnt[e.key] = [(part, copy.deepcopy(part.state_dict())) for part in parts]
        self.host.config = self.config

    def _forget(self, e: Entry) -> None:
        for part, state in self._learnt.get(e.key, ()):
            part.load_state_dict(state)

    def _seed(self, number: int, purpose: int) -> int:
        return batch_seed(self.seed, number, purpose)
