"""The low-discrepancy sequence: its known steps, and that it needs no state."""

from __future__ import annotations

import pytest
import torch

from carv_3d.scenes.camera_sequence import low_discrepancy


@pytest.mark.parametrize(
    ("dims", "alpha"), [(1, [0.6180339887]), (2, [0.7548776662, 0.5698402910]), (3, [0.8191725, 0.6710436, 0.5497005])]
)
def test_each_point_is_alpha_beyond_the_last(dims: int, alpha: list[float]) -> None:
    points = torch.cat([low_discrepancy(step, 3, dims, 7) for step in range(4)])
    step = torch.remainder(points.diff(dim=0), 1.0)
    torch.testing.assert_close(step, torch.tensor([alpha] * 11, dtype=torch.float64), atol=1e-6, rtol=0)
    assert float(points.min()) >= 0
    assert float(points.max()) < 1


def test_the_first_point_is_the_seeds_shift() -> None:
    shift = torch.rand(5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.equal(low_discrepancy(0, 4, 5, 3)[0], shift)
