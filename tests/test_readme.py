"""The README's library example runs as it stands, and gives the gradient that it promises."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_a_newcomer_finishes_it() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120


def test_the_library_example_runs_and_trains_what_is_rendered() -> None:
    code, _ = examples()
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


def test_the_example_of_a_flow_model_gives_the_gradient_of_the_exact_one() -> None:
    from carv_3d import NoiseSchedule, sds_loss

    _, code = examples()

    def velocity(z_t: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        s = (time / 1000).view(-1, 1, 1, 1)  # of a standard normal: E[eps - z | z_t]
        return (2 * s - 1) / ((1 - s) ** 2 + s**2) * z_t

    names = {"NoiseSchedule": NoiseSchedule, "transformer": velocity}
    exec(code, names)
    schedule, z = names["schedule"], torch.full((2, 4, 8, 8), 3.0, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    sds_loss(z, names["eps_hat"], schedule, num_draws=64, generator=generator).backward()

    def exact(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (x.view(-1, 1, 1, 1) for x in (schedule.alpha(t), schedule.sigma(t)))
        return sigma / (alpha**2 + sigma**2) * z_t

    same = z.detach().clone().requires_grad_()
    sds_loss(same, exact, schedule, num_draws=64, generator=generator.manual_seed(0)).backward()
    torch.testing.assert_close(z.grad, same.grad, rtol=1e-4, atol=1e-6)
    assert z.grad is not None
    assert z.grad.mean() > 0
