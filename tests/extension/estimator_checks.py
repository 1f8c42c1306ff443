"""What every guidance type is held to: K draws have the mean of one, and cost one encoding and one backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import recorded_parity as recorded
import torch
from torch import Tensor


def check_same_mean(single: Tensor, group: Tensor) -> None:
    """Asserts that two sets of gradients (N, D) and (M, D) have one mean, within 4 standard errors.

    Along the mean of some of the group, which are not looked at again, and along seven other directions.
    """
    first = len(group) // 4
    directions = torch.cat([group[:first].mean(0, keepdim=True), recorded.fill("directions", 7, group.shape[1])])
    directions = directions / directions.norm(dim=1, keepdim=True)
    a, b = single @ directions.T, group[first:] @ directions.T
    errors = (a.var(0) / len(a)).sqrt(), (b.var(0) / len(b)).sqrt()
    z_scores = (a.mean(0) - b.mean(0)).abs() / (errors[0].square() + errors[1].square()).sqrt()
    assert float(z_scores.max()) < 4, z_scores
    assert float(b.mean(0)[0] / errors[1][0]) > 8  # there is a mean to be missed
    assert float(b.var(0).sum()) < 0.3 * float(a.var(0).sum())


def render_gradients(call: Callable[[Tensor], dict[str, Any]], rgb: Tensor, renders: int, times: int) -> Tensor:
    """Gradients (renders * times, D) of one render rgb (1, H, W, 3), by calls with `renders` copies of it."""
    rows = []
    for _ in range(times):
        given = rgb.detach().expand(renders, *rgb.shape[1:]).clone().requires_grad_()
        rows.append(torch.autograd.grad(call(given)["loss_sds"], given)[0].flatten(1) * renders)
    return torch.cat(rows)


def count_encodings(guidance: Any) -> tuple[list[int], list[int]]:
    """Lists that grow by the samples of each encoding, and of each backward through one."""
    teacher = guidance._carv.teacher
    forward: list[int] = []
    backward: list[int] = []
    encode = teacher.encode

    def counted(images: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        forward.append(len(images))
        latents = encode(images, *args, **kwargs)
        if latents.requires_grad:
            latents.register_hook(lambda grad: backward.append(len(grad)))
        return latents

    teacher.encode = counted
    return forward, backward
