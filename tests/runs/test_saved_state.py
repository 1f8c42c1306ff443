"""Every item that a checkpoint holds is restored: one test for each, which fails where its wire is cut."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exact import SCORE_MEANS, GaussianScore
from saved_state import after_restoring
from small import small
from torch import Tensor, nn

from carv_3d.distill.loop import STREAMS, Distillation
from carv_3d.guidance.sds import GuidanceOptions, SDSGuidance
from carv_3d.guidance.vsd import VSDGuidance, VSDOptions
from carv_3d.runs.ranks import Ranks
from carv_3d.teachers.gaussian import GaussianTeacher
from carv_3d.tiny.stage import StagePlan, StageTrainer

TEACHER = GaussianTeacher(SCORE_MEANS, std=0.4, image_size=2)
TEXT, NONE = TEACHER.text_embeddings(["0"]), TEACHER.text_embeddings([""])
LEARNT: dict[str, Any] = {
    "num_draws": 4, "proposal": "adaptive", "stratify": "global", "max_step_percent": [0.98, 0.5, 10],
}  # fmt: skip
ESTIMATOR = ("proposal.max_step", "proposal.sum", "proposal.count", "shared_generator", "non_finite")


def latents() -> Tensor:
    return torch.tensor([0.5, -1.0, 0.8, 0.1], dtype=torch.float64).view(1, 2, 2, 1).requires_grad_()


def guidance(seed: int, steps: int, **options: Any) -> SDSGuidance:
    """After some steps, the last of which were not finite."""
    ranks = {} if options["num_draws"] == "auto" else {"world_size": 2}
    out = SDSGuidance(TEACHER, GuidanceOptions(guidance_scale=3.0, seed=seed, **options), **ranks)
    for step in range(steps):
        out(latents(), TEXT, NONE, step, rgb_as_latents=True)
    assert out.estimator.non_finite is not None
    out.estimator.non_finite.count = steps
    return out


def measuring(seed: int, steps: int) -> SDSGuidance:
    """With num_draws=auto, stopped within a burst."""
    out = guidance(seed, steps, num_draws="auto")
    auto = out.auto
    assert auto is not None
    if steps:
        assert auto.left == 2
        auto.estimator.num_draws, auto._chosen_renders, auto._last_renders = 8, 3, 2
        auto.variances.bursts, auto.variances.out2, auto.variances.in2 = 2, 0.5, [4.0, 3.0, 2.0, 1.0]
        auto.next_burst = 77
        auto.times._extra.append(0.3)
    return out


def vsd(seed: int, steps: int) -> VSDGuidance:
    score: Any = GaussianScore()
    out = VSDGuidance(TEACHER, score, VSDOptions(seed=seed, **LEARNT), world_size=2)
    for step in range(steps):
        out(latents(), TEXT, NONE, TEXT, torch.zeros(1, 16), step, rgb_as_latents=True)
    for estimator in (out.sds.estimator, out.training.estimator):
        if estimator.non_finite is not None:
            estimator.non_finite.count = steps
    return out


class TwoRanks(Ranks):
    world_size = 2

    def gather(self, value: Any) -> list[Any]:
        return [value, value]


def distillation(seed: int, steps: int) -> Distillation:
    out = small(TwoRanks(), seed=seed, **{**LEARNT, "max_step_percent": 0.98})
    for _ in range(max(steps, 1)):  # a fresh optimizer has no state at all
        out.train_step()
    if steps:
        out.matching.estimator.set_range(100, 700)
        out.generator_updates.non_finite.count, out.fake_updates.non_finite.count = 3, 5
    return out


def stage(seed: int, steps: int) -> StageTrainer:
    torch.manual_seed(seed)
    module = nn.Linear(3, 1)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        return module(torch.randn(4, 3, generator=generator)).square().mean()

    out = StageTrainer(module, loss, StagePlan(9, lr=0.1, seed=seed), {"data": 1}, Path("stage.pt"))
    for _ in range(steps + 1):
        out.train_step()
    return out


CASES: dict[str, tuple[Callable[[int, int], Any], int, tuple[str, ...]]] = {
    "guidance": (
        functools.partial(guidance, control_variate=True, **LEARNT),
        3,
        ("generator", *(f"estimator.{name}" for name in (*ESTIMATOR, "control.products", "control.squares"))),
    ),
    "num_draws=auto": (
        measuring,
        8,
        (
            "generator", "auto.num_draws", "auto.chosen_renders", "auto.last_renders", "auto.calls", "auto.next_burst",
            "auto.left", "auto.variances.bursts", "auto.variances.out2", "auto.variances.in2", "auto.variances.outs",
            "auto.variances.ins", "auto.variances.last", "auto.variances.generator", "auto.times.others",
            "auto.times.denoise", "auto.times.extra",
        ),
    ),
    "vsd": (vsd, 3, ("generator", *(f"estimator.{name}" for name in ESTIMATOR), "training.shared_generator")),
    "distill": (
        distillation,
        3,
        (
            "step", "nfe", "generator.unet", "fake.unet", "average.unet", "generator_updates.optimizer.state",
            "generator_updates.skipped", "fake_updates.optimizer.state", "fake_updates.skipped",
            *(f"ranks.0.generators.{name}" for name in STREAMS), "ranks.0.matching.proposal.sum",
            "ranks.0.matching.proposal.count", "ranks.0.matching.proposal.max_step",
            "ranks.0.matching.shared_generator", "ranks.0.fake_training.shared_generator",
        ),
    ),
    "training of carv-tiny": (stage, 3, ("module", "optimizer.state", "average", "step")),
}  # fmt: skip


@functools.cache
def restored(case: str) -> dict[str, str]:
    make, steps, _ = CASES[case]
    return after_restoring(make(1, 0), make(0, steps).state_dict())


@pytest.mark.parametrize(("case", "item"), [(case, item) for case, (_, _, items) in CASES.items() for item in items])
def test_an_item_is_restored(case: str, item: str) -> None:
    statuses = {key: status for key, status in restored(case).items() if f"{key}.".startswith(f"{item}.")}
    assert "restored" in statuses.values(), f"nothing is saved of {item}, or a new one has it anyway: {statuses}"
    assert "lost" not in statuses.values(), statuses


@pytest.mark.parametrize("case", CASES)
def test_no_item_is_lost(case: str) -> None:
    assert [key for key, status in restored(case).items() if status == "lost"] == []


def test_the_check_notices_a_wire_that_is_cut() -> None:
    class Cut:
        def __init__(self, kept: float, lost: float) -> None:
            self.state = {"kept": torch.tensor(kept), "deep": [{"lost": lost}], "same": math.nan}

        def state_dict(self) -> dict[str, Any]:
            return self.state

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.state["kept"] = state["kept"]

    statuses = after_restoring(Cut(1.0, 1.0), Cut(2.0, 2.0).state_dict())
    assert statuses == {"kept": "restored", "deep.0.lost": "lost", "same": "same"}
