"""The compiled look-up in a hashed table against embedding_bag: values, gradients, edges, and the hash itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from carv_3d.scenes.hashed import interpolate_hashed, interpolate_hashed_reference
from carv_3d.scenes.trilinear import interpolate, numba_available


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.skipif(not numba_available(), reason="numba is not installed: there is one path")
def test_values_and_gradients_equal_embedding_bag(channels: int) -> None:
    g = torch.Generator().manual_seed(0)
    table = torch.randn(2**9, channels, generator=g, requires_grad=True)  # 40^3 nodes share its rows
    inside = 2.4 * torch.rand(500, 3, generator=g) - 1.2  # some points beyond the border
    x = torch.cat([inside, torch.tensor([[-1.0, -1, -1], [1, 1, 1], [1, -1, 0], [0, 0, 0]])])
    upstream = torch.randn(len(x), channels, generator=g)
    fast, slow = interpolate_hashed(table, x, 40), interpolate_hashed_reference(table, x, 40)
    assert type(fast.grad_fn).__name__ == "_HashedBackward"
    torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-5)
    (grad_fast,) = torch.autograd.grad(fast, table, upstream)
    (grad_slow,) = torch.autograd.grad(slow, table, upstream)
    torch.testing.assert_close(grad_fast, grad_slow, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("look", [interpolate_hashed, interpolate_hashed_reference])
def test_a_hashed_level_agrees_with_a_dense_one_where_nothing_collides(look: Any) -> None:
    dense = torch.randn(4, 4, 4, 2, generator=torch.Generator().manual_seed(3))
    table = torch.zeros(2**14, 2)
    entries = set()
    for i in range(4):
        for j in range(4):
            for k in range(4):
                row = (i ^ (j * 2654435761) ^ (k * 805459861)) % 2**14
                entries.add(row)
                table[row] = dense[i, j, k]
    assert len(entries) == 64  # nothing collides
    unit = 2 * torch.rand(200, 3, generator=torch.Generator().manual_seed(4)) - 1
    torch.testing.assert_close(look(table, unit, 4), interpolate(dense, unit), atol=1e-5, rtol=1e-5)


def test_points_that_need_a_gradient_get_one() -> None:
    table = torch.randn(2**10, 2, generator=torch.Generator().manual_seed(1))
    x = torch.tensor([[0.3, 0.1, -0.2]], requires_grad=True)
    interpolate_hashed(table, x, 9)[0, 0].backward()
    ahead, behind = (
        interpolate_hashed(table, x.detach() + sign * torch.tensor([[1e-3, 0.0, 0.0]]), 9)[0, 0] for sign in (1, -1)
    )
    assert x.grad is not None
    assert float(x.grad[0, 0]) == pytest.approx(float(ahead - behind) / 2e-3, rel=1e-2)


def test_points_that_are_no_numbers_leave_the_others_alone() -> None:
    table = torch.randn(2**6, 2, generator=torch.Generator().manual_seed(2)).requires_grad_()
    x = torch.tensor([[float("nan"), 0.0, 0.0], [float("inf"), -float("inf"), 0.0], [1e30, 0.0, 0.0]])
    out = interpolate_hashed(table, x, 20)
    assert bool(out[0].isnan().all())
    expected = interpolate_hashed_reference(table, x[1:], 20)
    torch.testing.assert_close(out[1:], expected, atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(interpolate_hashed(table, x[1:], 20).sum(), table)
    (slow,) = torch.autograd.grad(expected.sum(), table)
    torch.testing.assert_close(gradient, slow, atol=1e-5, rtol=1e-5)
