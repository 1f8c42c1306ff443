"""A state is taken back where it is of the kind and the shapes that its owner has; anything else is one sentence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from carv_3d.errors import CarvError
from carv_3d.runs.checkpoint import load_checkpoint, load_optimizer, save_checkpoint, state_fits

OWN: dict[str, Any] = {
    "grid": torch.zeros(2, 3),
    "rng": torch.zeros(4, dtype=torch.uint8),
    "n": 1,
    "name": "a",
    "to": None,
    "inner": {"list": [0.5, 1]},
}
OTHER_DEVICE = torch.zeros(9, dtype=torch.uint8)
DAMAGED = [{}, {"step": -1}, {"step": 1.5}, {"step": True}, {"step": 2**60}, {"step": 1, "a": [torch.tensor(math.nan)]}]
UNFIT = [KeyError("a"), AttributeError("a"), IndexError("a"), OverflowError("a"), RuntimeError("a")]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"grid": torch.zeros(3, 2)}, r"the state's grid is \(3, 2\), and a tensor \(2, 3\) is due"),
        ({"grid": torch.zeros(2, 3, dtype=torch.long)}, "the state's grid is"),
        ({"grid": torch.zeros(2, 3).to_sparse()}, "the state's grid is"),
        ({"grid": None}, r"the state's grid is None, and a tensor \(2, 3\) is due"),
        ({"n": "1"}, "the state's n is '1', and a int is due"),
        ({"name": 1}, "the state's name is 1"),
        ({"inner": []}, r"the state's inner is \[\], and a dict is due"),
        ({"inner": {"list": ["x", 1]}}, "the state's inner.list.0 is 'x'"),
    ],
)
def test_another_kind_or_shape_is_named(change: dict[str, Any], sentence: str) -> None:
    expected = f"the checkpoint does not fit these options \\({sentence}"
    with pytest.raises(CarvError, match=expected), state_fits("these options", {**OWN, **change}, OWN):
        pytest.fail("nothing is taken back")


def test_what_is_older_longer_or_of_another_device_is_left_to_its_owner() -> None:
    for change in (
        {"rng": torch.zeros(9, dtype=torch.uint8)},
        {"to": 3.5},
        {"inner": {"list": []}},
        {"n": 2.5},
        {"more": "x"},
    ):
        with state_fits("these options", {**OWN, **change}, OWN):
            pass
    with state_fits("these options", {}, OWN):
        pass


@pytest.mark.parametrize(
    "error", [KeyError("a"), AttributeError("a"), IndexError("a"), OverflowError("a"), RuntimeError("a")]
)
def test_what_fails_in_the_block_does_not_fit(error: Exception) -> None:
    said = r"does not fit these options \(.*a.*\); restore its own, or begin a new run$"
    with pytest.raises(CarvError, match=said), state_fits("these options", {}, {}):
        raise error
    with pytest.raises(CarvError, match=r"^its own$"), state_fits("these options", {}, {}):
        raise CarvError("its own")


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"step": -1},
        {"step": 1.5},
        {"step": True},
        {"step": 2**60},
        {"step": 1, "a": [{"b": torch.tensor([math.nan])}]},
        {"step": 1, "a": {"b": [-math.inf]}},
    ],
)
def test_a_state_that_no_run_has_is_damaged(state: dict[str, Any], tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", {"step": 3})
    save_checkpoint(tmp_path / "checkpoint", state)
    kept, note = load_checkpoint(tmp_path / "checkpoint")
    assert kept == {"step": 3}
    assert note is not None
    (tmp_path / "checkpoint.previous").unlink()
    with pytest.raises(CarvError, match=r"no checkpoint in .* can be read: checkpoint"):
        load_checkpoint(tmp_path / "checkpoint")


def test_an_optimizer_keeps_its_decays_and_takes_rates_and_moments() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    first = torch.optim.Adam([weight], lr=0.5, betas=(0.1, 0.2))
    weight.grad = torch.ones(2)
    first.step()
    state = first.state_dict()
    second = torch.optim.Adam([weight], lr=0.1, betas=(0.3, 0.4))
    load_optimizer(second, state)
    assert second.param_groups[0]["lr"] == 0.5
    assert second.param_groups[0]["betas"] == (0.3, 0.4)
    assert torch.equal(second.state[weight]["exp_avg"], first.state[weight]["exp_avg"])
    state["state"][0]["exp_avg"] = torch.ones(3)
    with pytest.raises(ValueError, match=r"the optimizer's \(2,\)|the optimizer's \(3,\)"):
        load_optimizer(second, state)
