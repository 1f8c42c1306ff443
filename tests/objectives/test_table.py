"""The table: what each objective needs is what it reads, and the weight that timesteps follow is its factor of t."""

from __future__ import annotations

import pytest
import torch

from carv_3d.core.schedule import WEIGHTINGS, NoiseSchedule
from carv_3d.objectives.residuals import EpsHat
from carv_3d.objectives.table import OBJECTIVES

SCHEDULE = NoiseSchedule.scaled_linear()
T = torch.tensor([30, 500, 970])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_reads_what_it_needs_and_nothing_else(name: str) -> None:
    g = torch.Generator().manual_seed(0)
    objective, shape = OBJECTIVES[name], (3, 1, 2, 2)
    z_t, eps = (torch.randn(shape, generator=g) for _ in range(2))
    e = EpsHat(**{field: torch.randn(shape, generator=g) for field in objective.needs})
    w = torch.ones(3, 1, 1, 1)
    f = objective.function(e, eps, z_t, T, SCHEDULE, w)
    for field in objective.needs:
        other = objective.function(e._replace(**{field: e._asdict()[field] + 1}), eps, z_t, T, SCHEDULE, w)
        assert not torch.allclose(other, f), field


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_weight_is_the_factor_that_depends_on_t_alone(name: str) -> None:
    objective = OBJECTIVES[name]
    for weighting in WEIGHTINGS:
        w = objective.weights(SCHEDULE, weighting)
        if name in ("sjc", "sjc_plain", "dmd"):
            assert torch.equal(w, torch.ones(1000))
        elif name == "kl":
            abar = SCHEDULE.alphas_cumprod
            torch.testing.assert_close(w, (abar / (1 - abar)).sqrt())
        else:
            assert torch.equal(w, SCHEDULE.weights(weighting))


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in ("sjc", "sjc_plain", "dmd")])
def test_the_residual_is_in_proportion_to_its_weight(name: str) -> None:
    g = torch.Generator().manual_seed(0)
    z_t, eps = (torch.randn(3, 1, 2, 2, generator=g) for _ in range(2))
    e = EpsHat(*(torch.randn(3, 1, 2, 2, generator=g) for _ in range(5)))
    function = OBJECTIVES[name].function
    single, triple = (function(e, eps, z_t, T, SCHEDULE, torch.full((3, 1, 1, 1), w)) for w in (1.0, 3.0))
    torch.testing.assert_close(triple, 3 * single)
