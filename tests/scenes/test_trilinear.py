"""The compiled interpolation against F.grid_sample: values, gradients, edges."""

from __future__ import annotations

import pytest
import torch

from carv_3d.scenes import trilinear
from carv_3d.scenes.trilinear import interpolate, interpolate_reference


@pytest.mark.parametrize("channels", [1, 4, 6])
@pytest.mark.skipif(not trilinear.numba_available(), reason="numba is not installed: there is one path")
def test_values_and_gradients_equal_grid_sample(channels: int) -> None:
    g = torch.Generator().manual_seed(0)
    grid = torch.randn(5, 7, 6, channels, generator=g, requires_grad=True)
    inside = 2.4 * torch.rand(500, 3, generator=g) - 1.2  # some points beyond the border
    x = torch.cat([inside, torch.tensor([[-1.0, -1, -1], [1, 1, 1], [1, -1, 0], [0, 0, 0]])])
    upstream = torch.randn(len(x), channels, generator=g)
    fast, slow = interpolate(grid, x), interpolate_reference(grid, x)
    assert type(fast.grad_fn).__name__ == "_TrilinearBackward"
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)
    (grad_fast,) = torch.autograd.grad(fast, grid, upstream)
    (grad_slow,) = torch.autograd.grad(slow, grid, upstream)
    torch.testing.assert_close(grad_fast, grad_slow, atol=1e-4, rtol=1e-5)


def test_a_linear_function_is_reproduced_along_the_named_axes() -> None:
    axes = [torch.linspace(-1, 1, n) for n in (3, 4, 5)]
    i, j, k = torch.meshgrid(*axes, indexing="ij")
    grid = (1 + 2 * i - 3 * j + 0.5 * k)[..., None]
    x = 2 * torch.rand(50, 3, generator=torch.Generator().manual_seed(1)) - 1
    expected = 1 + 2 * x[:, 0] - 3 * x[:, 1] + 0.5 * x[:, 2]
    torch.testing.assert_close(interpolate(grid, x)[:, 0], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(interpolate_reference(grid, x)[:, 0], expected, atol=1e-5, rtol=1e-5)


def test_points_that_need_a_gradient_get_one() -> None:
    grid = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 5, 5, 1).contiguous()
    x = torch.tensor([[0.3, 0.1, -0.2]], requires_grad=True)
    interpolate(grid, x).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[1.0, 0.0, 0.0]]))


def test_nan_points_do_not_reach_beyond_the_grid() -> None:
    grid = torch.ones(4, 4, 4, 4, requires_grad=True)
    x = torch.tensor([[float("nan"), 0.0, 0.0], [float("inf"), -float("inf"), 0.0], [1e30, 0.0, 0.0]])
    out = interpolate(grid, x)
    out[1:].sum().backward()
    torch.testing.assert_close(out[1:], torch.ones(2, 4))


@pytest.mark.skipif(not trilinear.numba_available(), reason="numba is not installed: there is one path")
def test_where_the_compiled_loops_are_used() -> None:
    grid, x = torch.ones(3, 3, 3, 2), torch.zeros(5, 3)
    assert trilinear.compiled(grid, x)
    assert not trilinear.compiled(grid.double(), x.double())
    assert not trilinear.compiled(grid, x.double())
    assert not trilinear.compiled(grid.to("meta"), x.to("meta"))
    moving = x.clone().requires_grad_()
    assert not trilinear.compiled(grid, moving)
    with torch.no_grad():
        assert trilinear.compiled(grid, moving)
    flat = torch.arange(9.0).view(1, 3, 3, 1)  # a grid of one layer has no voxels
    torch.testing.assert_close(interpolate(flat, x)[0], torch.tensor([4.0]))
    torch.testing.assert_close(interpolate(grid.double(), x.double()), torch.ones(5, 2, dtype=torch.float64))
