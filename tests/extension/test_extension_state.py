"""What the extension keeps between steps, runs and processes, in a host double."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import host_double as double
import pytest
import torch
from torch import Tensor

from carv_3d.errors import CarvError

B = 2


def ranks(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    """As in the process `rank` of a group."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world_size)


def test_state_survives_the_hosts_checkpoint(host: Any, make: Callable[..., Any], rgb: Tensor, utils: Any) -> None:
    system_class = type("system:carv-checkpoint", (host.modules["carv-checkpoint"], double.System), {})
    first, second = system_class(), system_class()
    first.guidance = make(proposal="adaptive")
    for _ in range(3):
        first.guidance(rgb, utils, **double.VIEWS)
    checkpoint: dict[str, Any] = {}
    first.on_save_checkpoint(checkpoint)
    second.on_load_checkpoint(checkpoint)
    second.guidance = make(proposal="adaptive", seed=9)
    second.on_fit_start()
    assert second.own == 1
    outputs = [s.guidance(rgb, utils, **double.VIEWS) for s in (first, second)]
    assert torch.equal(outputs[0]["loss_sds"], outputs[1]["loss_sds"])
    for counted in ("nfe", "renders"):
        assert outputs[0][counted] == outputs[1][counted]
    assert outputs[1]["renders"] == 4 * B


def test_a_system_with_another_guidance_is_left_alone(host: Any) -> None:
    system = type("system", (host.modules["carv-checkpoint"], double.System), {})()
    checkpoint: dict[str, Any] = {}
    system.on_save_checkpoint(checkpoint)
    assert checkpoint == {"own": 1}
    system.on_load_checkpoint(checkpoint)
    system.on_fit_start()


def test_a_saved_state_is_taken_once(host: Any, make: Callable[..., Any]) -> None:
    system = type("system", (host.modules["carv-checkpoint"], double.System), {})()
    system.on_load_checkpoint({"own": 1, "carv_guidance": {"a": 1}})
    taken: list[Any] = []
    system.guidance = make()
    system.guidance.load_carv_state = taken.append
    system.on_fit_start()
    system.on_fit_start()  # a second fit in one process resumes what it has
    assert taken == [{"a": 1}]


def test_a_model_without_finite_predictions_ends_the_run(make: Callable[..., Any], rgb: Tensor, utils: Any) -> None:
    guidance, text = make(num_draws=1), utils.text
    for value in (float("nan"), 1.0, float("nan")):
        utils.text = text * value
        for _ in range(19 if value != 1.0 else 1):  # only steps in a row are counted
            assert guidance(rgb, utils, **double.VIEWS)["nonfinite"] == (0.0 if value == 1.0 else B)
    with pytest.raises(CarvError, match="no finite prediction for 20 steps"):
        guidance(rgb, utils, **double.VIEWS)


def test_two_ranks_share_the_strata_and_not_the_noise(
    make: Callable[..., Any], rgb: Tensor, utils: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"seed": 5, "num_draws": 2, "proposal": "uniform", "stratify": "global"}
    both = [make(**options, min_step_percent=0.0, max_step_percent=1.0) for _ in range(2)]  # before there are ranks
    t, noise = [], []
    for rank, guidance in enumerate(both):
        ranks(monkeypatch, rank, 2)
        timesteps: list[Tensor] = []
        monkeypatch.setattr(guidance._carv.teacher, "eps_hat", lambda z, t, text, to=timesteps: to.append(t) or z)
        guidance(rgb, utils, **double.VIEWS)
        t.append(torch.cat([x[: len(x) // 2] for x in timesteps]).tolist())
        noise.append(torch.randn(3, generator=guidance._carv.generator).tolist())
    assert sorted(int(x / 1000 * 8) for x in t[0] + t[1]) == list(range(8))  # 2 ranks, 2 renders, 2 draws
    assert noise[0] != noise[1]


@pytest.mark.parametrize("kind", ["make", "make_vsd"])
def test_a_rank_resumes_with_noise_of_its_own(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = request.getfixturevalue(kind)
    first, resumed, other = build(stratify="global"), build(stratify="global"), build(stratify="global")
    state = first.carv_state()
    for rank, guidance in enumerate((resumed, other)):
        ranks(monkeypatch, rank, 2)
        guidance.load_carv_state(state)  # before its first call, as on_fit_start does
    sds = [getattr(guidance._carv, "sds", guidance._carv) for guidance in (first, resumed, other)]
    assert [(each.estimator.options.rank, each.estimator.options.world_size) for each in sds] == [
        (0, 1),
        (0, 2),
        (1, 2),
    ]
    a, b, c = (torch.randn(3, generator=each.generator).tolist() for each in sds)
    assert a == b
    assert b != c
    if kind == "make_vsd":
        training = [guidance._carv.training.estimator.options for guidance in (resumed, other)]
        assert [(each.rank, each.world_size) for each in training] == [(0, 2), (1, 2)]


def test_a_process_by_itself_is_rank_0_of_1(host: Any) -> None:
    assert sys.modules["threestudio-carv.common"].ranks() == {"rank": 0, "world_size": 1}


@pytest.mark.parametrize("state", [None, [], {"generator": torch.zeros(3)}])
def test_what_is_no_state_of_a_guidance_is_named(make: Callable[..., Any], state: Any) -> None:
    with pytest.raises(CarvError, match="this is no state of a carv guidance"):
        make().load_carv_state(state)
