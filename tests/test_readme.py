"""The README's library example runs as it stands, and gives the gradient that it promises."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_library_example_runs_and_trains_what_is_rendered() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    theta = torch.full((2, 4, 8, 8), 3.0, requires_grad=True)
    calls = {"encode": 0}

    def encode(x: torch.Tensor) -> torch.Tensor:
        calls["encode"] += 1
        return 0.5 * x

    def eps_hat(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        from carv_3d import NoiseSchedule

        s = NoiseSchedule.scaled_linear()  # the exact noise predictor of a standard normal: sigma_t z_t
        return s.sigma(t).view(-1, 1, 1, 1) * z_t

    names = {"theta": theta, "render": lambda x: x, "encode": encode, "eps_hat": eps_hat}
    torch.manual_seed(0)
    exec(code, names)
    assert calls["encode"] == 1
    assert theta.grad is not None
    assert theta.grad.mean() > 0  # descent pulls 3 towards the normal's mean, 0
