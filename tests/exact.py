"""What the exact Gaussian teacher says of an objective: its gradient in expectation, without any draw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from carv_3d.guidance.cfg import Conditioning
from carv_3d.objectives.residuals import EpsHat
from carv_3d.objectives.table import OBJECTIVES
from carv_3d.teachers.gaussian import GaussianTeacher

# (stratify, pairs, K) that go together.
LAYOUTS = [
    (stratify, pairs, K)
    for stratify in ("none", "render", "global")
    for pairs in (False, True)
    for K in (1, 2, 4, 8)
    if not (pairs and K % 2)
]


def expected_gradient(
    teacher: GaussianTeacher,
    objective: str,
    z: Tensor,
    cond: Conditioning,
    s: float = 1.0,
    weighting: str = "sds",
    low: int = 20,
    high: int = 980,
    trained: GaussianTeacher | None = None,
) -> Tensor:
    """E_{t, eps}[f] of z (R, C, n, n), t uniform on low .. high, for an objective that is linear in its predictions.

    cond: of R renders, Perp-Neg apart. trained: a score whose one component is `trained_text`'s.
    """
    t = torch.arange(low, high + 1, device=z.device)
    n, named = len(t), OBJECTIVES[objective]
    w = named.weights(teacher.schedule, weighting)[t].to(z.dtype).view(-1, 1, 1, 1)
    out = []
    for r, latents in enumerate(z):

        def expected(model: Any, text: Tensor | None, latents: Tensor = latents, r: int = r) -> Any:
            return (
                None
                if text is None
                else model.expected_eps_hat(latents.expand(n, *latents.shape), t, text[r].expand(n, -1, -1))
            )

        text, uncond, negative = (expected(teacher, x) for x in (cond.text, cond.uncond, cond.negative))
        own = None if trained is None else expected(trained, cond.trained_text)
        e = EpsHat(text, uncond, uncond + s * (text - uncond), negative, own)
        nothing = torch.zeros_like(e.text)  # eps is 0 in expectation
        out.append(named.function(e, nothing, nothing, t, teacher.schedule, w).mean(0))
    return torch.stack(out)


def sds_gradient(
    teacher: GaussianTeacher,
    z: Tensor,
    text: Tensor,
    uncond: Tensor | None = None,
    s: float = 1.0,
    weighting: str = "sds",
    low: int = 20,
    high: int = 980,
) -> Tensor:
    """Score distillation's; text, uncond (R, 1, M), and without `uncond` there is no guidance."""
    cond = Conditioning(text, text if uncond is None else uncond)
    return expected_gradient(teacher, "sds", z, cond, s, weighting, low, high)


def guided(teacher: Any, z_t: Tensor, t: Tensor, text: Tensor, uncond: Tensor, s: float) -> Tensor:
    """Classifier-free guidance, written out."""
    with_it, without = teacher.eps_hat(z_t, t, text), teacher.eps_hat(z_t, t, uncond)
    out: Tensor = without + s * (with_it - without)
    return out


SCORE_MEANS = torch.tensor([[1.0, -0.5, 0.3, 0.8], [-0.7, 0.9, -0.2, 0.1]], dtype=torch.float64).view(2, 1, 2, 2)


class GaussianScore:
    """A model of the renders that is known exactly: its eps_hat is a Gaussian's; its one parameter is idle."""

    def __init__(self) -> None:
        self.model = GaussianTeacher(SCORE_MEANS[:1] + 0.4, std=0.7)
        self.schedule = self.model.schedule
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def parameters(self) -> list[nn.Parameter]:
        return [self.weight]

    def eps_hat(self, z_t: Tensor, t: Tensor, /, *condition: Tensor) -> Tensor:
        return self.model.eps_hat(z_t, t, condition[0][..., :1])

    def predict(self, z_t: Tensor, t: Tensor, /, *condition: Tensor) -> Tensor:
        return self.weight * z_t

    def target(self, z: Tensor, eps: Tensor, t: Tensor, /) -> Tensor:
        return eps
