"""A guidance's saved state, where a run is resumed with other options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DESIGN = ("proposal", "num_draws", "stratify", "antithetic")


def fit_state(
    state: Mapping[str, Any], fresh: Mapping[str, Any], before: Mapping[str, Any], now: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The part of a saved state that goes with the options of now, and a sentence for each option that changed.

    Args:
        state: saved.
        fresh: of a guidance that has just begun.
        before: the options in DESIGN when it was saved; {} for a checkpoint of before they were kept.
        now: those options now.
    """
    group = "antithetic" in now and before.get("antithetic", now["antithetic"]) != now["antithetic"]
    dropped: list[str] = []
    fitting = _fit(state, fresh, group, dropped)
    if "auto" in state and "auto" not in fresh:
        dropped.append("what auto had measured")
    changed = {name: before[name] for name, value in now.items() if name in before and before[name] != value}
    kinds = [str(learnt["name"]) for learnt in _proposals(state)]
    if not before and dropped and kinds:
        changed = {"proposal": kinds[0]}
    lost = f"dropped: {' and '.join(dict.fromkeys(dropped))}" if dropped else "nothing is dropped"
    words = ", ".join(f"{name} was {value} and is {now[name]}" for name, value in changed.items())
    return fitting, [f"Resumed with other options ({words}); {lost}."] if words else []


def _fit(state: Any, fresh: Any, group: bool, dropped: list[str]) -> Any:
    if not isinstance(state, Mapping) or not isinstance(fresh, Mapping):
        return state
    if _is_proposal(state) and _is_proposal(fresh):
        if state["name"] != fresh["name"] or (group and "sum" in state):
            if "sum" in state:
                dropped.append(f"what the {state['name']} proposal had learnt")
            else:
                dropped.append(f"the {state['name']} proposal, which learns nothing")
            return dict(fresh)
        return dict(state)
    return {key: _fit(value, fresh.get(key), group, dropped) for key, value in state.items()}


def _is_proposal(state: Mapping[str, Any]) -> bool:
    return {"name", "min_step", "max_step"} <= state.keys()


def _proposals(state: Any) -> list[Mapping[str, Any]]:
    if not isinstance(state, Mapping):
        return []
    if _is_proposal(state):
        return [state]
    return [inner for value in state.values() for inner in _proposals(value)]
