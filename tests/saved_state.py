"""Is every item of a saved state restored?"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor


def flat(state: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested plain data, by dotted names."""
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, (list, tuple)):
        items = enumerate(state)
    else:
        return {name: state}
    return {k: v for key, value in items for k, v in flat(value, f"{name}.{key}".lstrip(".")).items()}


def equal(a: Any, b: Any) -> bool:
    """Bit for bit; NaN equals NaN."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return type(a) is type(b) and bool(a == b)


def after_restoring(fresh: Any, state: dict[str, Any]) -> dict[str, str]:
    """Load `state` into `fresh`. Of every item: "lost", "restored", or "same" where `fresh` held it already."""
    expected = flat(copy.deepcopy(state))
    before = flat(copy.deepcopy(fresh.state_dict()))
    fresh.load_state_dict(copy.deepcopy(state))
    after = flat(fresh.state_dict())
    assert after.keys() == expected.keys()

    def status(key: str) -> str:
        if not equal(after[key], expected[key]):
            return "lost"
        return "same" if key in before and equal(before[key], expected[key]) else "restored"

    return {key: status(key) for key in expected}


def untested_after_restoring(fresh: Any, state: dict[str, Any]) -> list[str]:
    """Load `state` into `fresh`, which must then give back every item of it.

    Returns:
        The items that `fresh` held already, of which the check therefore says nothing.
    """
    statuses = after_restoring(fresh, state)
    lost = [key for key, status in statuses.items() if status == "lost"]
    assert not lost, f"not restored: {lost}"
    return [key for key, status in statuses.items() if status == "same"]
